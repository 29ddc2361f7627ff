"""Building and checking the figures of a source tree: rows in ``experiments/rows``, pictures in ``docs/figures``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kvlab.errors import KvlabError, RunError
from kvlab.figures import saved as rows
from kvlab.figures.claim import Verdict
from kvlab.figures.draw import RENDERER, Picture, draw
from kvlab.figures.figure import Figure
from kvlab.figures.kept_rows import kept_rows
from kvlab.figures.saved import Saved
from kvlab.figures.stack_page.measured import METRICS as OF_STACK
from kvlab.figures.stack_page.stack_rows import STACKS
from kvlab.paths import PACKAGE
from kvlab.results import make_folder

MANIFEST = "figures.json"
GALLERY = "README.md"
KEPT = ("svg", "png")
"""The files that are part of the repository; HTML pages are large, and made on request."""


@dataclass(frozen=True)
class Place:
    """Where a source tree has its experiments, saved rows, pictures, and the pages that name numbers of figures."""

    experiments: Path
    rows: Path
    pictures: Path
    pages: tuple[Path, ...] = ()

    @classmethod
    def of(cls, root: Path) -> Place:
        pages = (page for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if page.is_file())
        return cls(root / "experiments", root / "experiments" / "rows", root / "docs" / "figures", tuple(pages))


def source_tree() -> Place:
    """Return the source tree of this kvlab. Raises RunError for an installed wheel, which has no docs."""
    root = PACKAGE.parent
    if not (root / "docs").is_dir() or not (root / "experiments").is_dir():
        raise RunError("figures are built in a clone of kvlab's repository; this one is installed without docs")
    return Place.of(root)


def build(figures: Sequence[Figure], place: Place, *, progress: bool = True) -> list[Path]:
    """Draw the figures from the saved rows and return the paths of the written files; other figures stay."""
    make_folder(place.pictures)
    manifest = read_manifest(place.pictures)
    written: list[Path] = []
    for figure in tqdm(figures, desc="figures", unit="figure", disable=not progress):
        saved = rows.read(place.rows, figure.experiments)
        picture = draw(figure, saved)
        for kind in ("svg", "png", "html"):
            path = place.pictures / f"{figure.name}.{kind}"
            path.write_bytes(getattr(picture, kind))
            written.append(path)
        manifest[figure.name] = entry(figure, saved, picture)
    (place.pictures / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (place.pictures / GALLERY).write_text(gallery(manifest), encoding="utf-8")
    return written


def measured(figures: Sequence[Figure], folder: Path) -> tuple[Figure, ...]:
    """Return the figures whose experiments have rows in a folder: one that is new is declared before it is measured."""
    return tuple(figure for figure in figures if rows.are_there(folder, figure.experiments))


def entry(figure: Figure, saved: Saved, picture: Picture) -> dict[str, Any]:
    """Return the manifest's entry of a figure."""
    files = {kind: hashlib.sha256(getattr(picture, kind)).hexdigest() for kind in KEPT}
    return {
        "title": figure.title,
        "experiments": list(figure.experiments),
        "chart": picture.chart,
        "renderer": RENDERER,
        "caption": figure.caption(saved),
        **files,
    }


def gallery(manifest: dict[str, Any]) -> str:
    """Return a page of all figures with their captions, made from the manifest alone."""
    parts = [
        "# Figures\n\nMade by `kvlab figures` from the rows in `experiments/rows`; "
        "see [experiments](../experiments.md). Below each figure stands the commit at which its rows were measured; "
        "`kvlab figures --check` says whether code that matters to them has changed since.\n"
    ]
    for name, about in sorted(manifest.items()):
        parts.append(f"## {about['title']}\n\n![{about['title']}]({name}.svg)\n\n{about['caption']}\n")
    return "\n".join(parts)


def rerun(figures: Sequence[Figure], place: Place, target: Path, stores: Path, *, progress: bool = True) -> list[str]:
    """Measure the experiments of these figures again, in row stores under `stores`, and write their rows to `target`.

    An experiment's rows are of the metrics that any of these figures needs. Of several experiments, those that cannot
    be measured (their model is not here, for instance) leave the others alone: returns a line for each. The only one
    raises KvlabError.
    """
    problems = []
    names = list(dict.fromkeys(name for figure in figures for name in figure.experiments))
    for name in names:
        needed = frozenset().union(*(figure.needs() for figure in figures if name in figure.experiments))
        needed |= OF_STACK if name in STACKS else frozenset()
        try:
            found = rows.measure(place.experiments / f"{name}.toml", stores / name, progress=progress)
        except KvlabError as error:
            if len(names) == 1:
                raise
            problems.append(f"{name}: it could not be measured: {error}")
            continue
        rows.write(target, name, dataclasses.replace(found, rows=kept_rows(name, found.rows)), needed)
    return problems


def judge(figures: Sequence[Figure], folder: Path, *, fresh: bool) -> list[tuple[Figure, Saved, Verdict]]:
    """Check every claim of these figures against the saved rows in a folder."""
    judged = []
    for figure in figures:
        saved = rows.read(folder, figure.experiments)
        judged += [(figure, saved, verdict) for verdict in figure.judge(saved, fresh=fresh)]
    return judged


def read_manifest(pictures: Path) -> dict[str, Any]:
    """Read the manifest; empty where there is none. Raises RunError where it is damaged."""
    path = pictures / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no object")
        return manifest
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove it, and run kvlab figures") from error
