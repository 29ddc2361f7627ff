"""Checks: do the pictures follow from the saved rows, and do the rows support the claims?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from kvlab.errors import RunError
from kvlab.figures import saved as rows
from kvlab.figures.build import GALLERY, KEPT, MANIFEST, Place, entry, gallery, judge, read_manifest
from kvlab.figures.draw import RENDERER, draw
from kvlab.figures.figure import Figure


def check(figures: Sequence[Figure], place: Place) -> list[str]:
    """Return one line for each error; an empty list without errors.

    A figure follows from the rows if its chart, drawn again, has the data and specification that the manifest names,
    and its files are those of the manifest. Where the renderer's version is the manifest's, the SVG must be the same
    byte by byte; another version may set text elsewhere.
    """
    manifest = read_manifest(place.pictures)
    problems = [problem for figure in figures for problem in _of_one(figure, place, manifest)]
    page = place.pictures / GALLERY
    if not page.exists() or page.read_text(encoding="utf-8") != gallery(manifest):
        problems.append(f"{GALLERY} of the figures is not what {MANIFEST} gives; run kvlab figures")
    return problems


def contradictions(figures: Sequence[Figure], place: Place, *, fresh: bool) -> list[str]:
    """Return a line for each claim that the rows contradict: saved rows by the bound, fresh ones by the tolerance."""
    return [
        f"{figure.name}: {'the fresh run contradicts' if fresh else 'the saved rows contradict'} it. {verdict}"
        for figure, _, verdict in judge(figures, place.rows, fresh=fresh)
        if not verdict.holds
    ]


def _of_one(figure: Figure, place: Place, manifest: dict[str, Any]) -> Iterator[str]:
    about = manifest.get(figure.name)
    if about is None:
        yield f"{figure.name}: it was never built; run kvlab figures"
        return
    try:
        saved = rows.read(place.rows, figure.experiments)
        picture = draw(figure, saved)
        now = json.loads(json.dumps(entry(figure, saved, picture)))
    except RunError as error:
        yield f"{figure.name}: {error}"
        return
    if now["chart"] != about.get("chart"):
        yield f"{figure.name}: the rows give another chart than the one that was drawn; run kvlab figures"
    elif now["caption"] != about.get("caption"):
        yield f"{figure.name}: the rows give another caption than the one that was written; run kvlab figures"
    for kind in KEPT:
        path = place.pictures / f"{figure.name}.{kind}"
        if not path.exists():
            yield f"{figure.name}: {path.name} is missing; run kvlab figures"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != about.get(kind):
            yield f"{figure.name}: {path.name} was altered after it was drawn; run kvlab figures"
    if about.get("renderer") == RENDERER and now["svg"] != about.get("svg") and now["chart"] == about.get("chart"):
        yield f"{figure.name}: the same renderer gives another SVG for the same chart; run kvlab figures"
