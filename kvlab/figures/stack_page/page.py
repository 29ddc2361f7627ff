"""The parts of pages that are written from the stack's rows, between two comments that name them.

<!-- stack: table -->
(made by `kvlab figures`)
<!-- /stack -->

``table of stack_smollm2`` is the table of another experiment than ``stack``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kvlab.figures import saved as saved_rows
from kvlab.figures.build import Place
from kvlab.figures.figure import origin
from kvlab.figures.saved import Saved
from kvlab.figures.stack_page.portraits import not_first, portraits
from kvlab.figures.stack_page.stack_rows import STACK, STACKS, StackRows
from kvlab.figures.stack_page.tables import claims_table, main_table, missing, opening_table, rows_behind

PICTURE_SAYS = "The six systems and kvlab's tiered, side by side on the rows of the stack"
OPENING = "<!-- stack:"
MARKED = re.compile(
    r"(?P<opening><!-- stack: (?P<name>[\w-]+)(?: of (?P<experiment>\w+))? -->\n)"
    r"(?P<text>.*?)(?P<closing>\n?<!-- /stack -->)",
    re.S,
)


@dataclass(frozen=True)
class Scene:
    """What a part is made from: an experiment, its rows (None before the first measurement), where its page stands."""

    experiment: str
    saved: Saved | None
    rows: StackRows | None
    place: Place
    page: Path

    @property
    def picture(self) -> str:
        """The name of the figure of the experiment."""
        return f"{self.experiment.replace('_', '-')}-at-a-glance"

    @property
    def unmeasured(self) -> str:
        return f"*Not measured yet: `kvlab figures --rerun --only {self.picture}`.*"

    @property
    def prefix(self) -> str:
        """Leads from the page to the folder of docs."""
        docs = self.place.pictures.parent
        return "" if self.page.parent == docs else f"{docs.name}/"


def _of_rows(make: Callable[[StackRows], str]) -> Callable[[Scene], str]:
    return lambda scene: scene.unmeasured if scene.rows is None else make(scene.rows)


def _origin(scene: Scene) -> str:
    if scene.saved is None or scene.rows is None:
        return scene.unmeasured
    measured = str(scene.saved.provenance.get("time", ""))[:10]
    line = f"*{origin(scene.saved)} · {measured}. {_repeats(scene.saved)}*"
    return "\n\n".join(filter(None, [line, missing(scene.rows), _picture(scene)]))


def _repeats(saved: Saved) -> str:
    """Return how often each part was measured, and what that means for ties."""
    often = {
        part: found.select("seed", "repeat").n_unique()
        for (part,), found in saved.rows.group_by("workload", maintain_order=True)
    }
    told = f"Repeats: {', '.join(f'{count} of `{part}`' for part, count in often.items())}."
    once = "Where there is one there is no range, and a small difference of times says nothing."
    return f"{told} {once}" if 1 in often.values() else told


def _opening(scene: Scene) -> str:
    if scene.saved is None or scene.rows is None:
        return scene.unmeasured
    facts = f"*{origin(scene.saved)}.*"
    return "\n\n".join(filter(None, [_picture(scene), opening_table(scene.rows, scene.prefix), facts]))


def _picture(scene: Scene) -> str:
    there = (scene.place.pictures / f"{scene.picture}.svg").is_file()
    return f"![{PICTURE_SAYS}]({scene.prefix}{scene.place.pictures.name}/{scene.picture}.svg)" if there else ""


PARTS: Mapping[str, Callable[[Scene], str]] = {
    "opening": _opening,
    "origin": _origin,
    "table": _of_rows(main_table),
    "claims": lambda scene: claims_table(scene.rows),
    "designs": lambda scene: portraits(scene.rows),
    "not-first": _of_rows(not_first),
    "rows": _of_rows(rows_behind),
}


def fill_stack(place: Place) -> list[Path]:
    """Write the parts into the pages that have them, and return the pages that changed. Raises RunError."""
    changed = []
    scenes = _scenes(place)
    for page in place.pages:
        before = page.read_text(encoding="utf-8")
        after = MARKED.sub(functools.partial(_made, scenes=scenes, page=page), before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


def check_stack(place: Place) -> list[str]:
    """Return a line for each part of a page that is older than the rows, and for each comment that is not read."""
    problems = []
    scenes = _scenes(place)
    for page in place.pages:
        text = page.read_text(encoding="utf-8")
        found = list(MARKED.finditer(text))
        if len(found) != text.count(OPENING):
            problems.append(
                f"{page.name}: a comment cannot be read; write {OPENING} PART --> and <!-- /stack -->, a line each"
            )
        for one in found:
            experiment = one["experiment"] or STACK
            if one["name"] not in PARTS:
                problems.append(f"{page.name}: there is no part {one['name']!r}; the parts are {', '.join(PARTS)}")
            elif experiment not in STACKS:
                known = ", ".join(STACKS)
                problems.append(f"{page.name}: no experiment {experiment!r} of the stack; there are {known}")
            elif _made(one, scenes, page) != one[0]:
                problems.append(
                    f"{page.name}: the part {one['name']} is older than the rows of {experiment}; run kvlab figures"
                )
    return problems


def read_stack(folder: Path, experiment: str = STACK) -> Saved | None:
    """Return the saved rows of the stack; None before the first measurement. Raises RunError for damaged ones."""
    return saved_rows.read(folder, [experiment]) if saved_rows.are_there(folder, [experiment]) else None


def _scenes(place: Place) -> dict[str, Scene]:
    """Return what parts are made from, by experiment; their page is set when it is known."""
    made = {}
    for experiment in STACKS:
        saved = read_stack(place.rows, experiment)
        rows = None if saved is None else StackRows(saved.rows, experiment)
        made[experiment] = Scene(experiment, saved, rows, place, Path())
    return made


def _made(found: re.Match[str], scenes: Mapping[str, Scene], page: Path) -> str:
    scene = scenes.get(found["experiment"] or STACK)
    if found["name"] not in PARTS or scene is None:
        return found[0]
    text = PARTS[found["name"]](replace(scene, page=page))
    return f"{found['opening']}{text}\n{found['closing'].strip()}"
