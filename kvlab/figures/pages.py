"""Numbers in the text of README and docs: between two comments that name them, written from the saved rows.

tiered needs <!-- figure: ttft-by-turn tiered-at-15 -->0.026<!-- /figure --> times the time
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kvlab.errors import RunError
from kvlab.figures import saved as rows
from kvlab.figures.build import Place
from kvlab.figures.figure import Figure, commits_of, origin
from kvlab.figures.saved import Saved

OPENING = "<!-- figure:"
MARKED = re.compile(
    r"(?P<opening><!-- figure: (?P<figure>[\w-]+) (?P<name>[\w-]+) -->)(?P<text>[^<\n]*)(?P<closing><!-- /figure -->)"
)
FORM = "<!-- figure: FIGURE NAME -->text<!-- /figure -->, on one line and not at its beginning"


def texts_of(figure: Figure, saved: Saved) -> dict[str, str]:
    """Return all texts that pages may name of a figure: its numbers, and where its rows come from. Raises RunError."""
    facts = saved.provenance
    about = {
        "origin": origin(saved),
        "model": str(facts.get("model")),
        "device": str(facts.get("device")),
        "commit": ", ".join(commits_of(facts)),
        "date": str(facts.get("time", ""))[:10],
    }
    return about | {name: number.text(saved.rows) for name, number in figure.numbers.items()}


def fill(figures: Sequence[Figure], place: Place) -> list[Path]:
    """Write the texts of these figures into the pages that name them, and return the pages that changed.

    Raises RunError where a page names what does not exist.
    """
    known = _known(figures, place)
    changed = []
    for page in place.pages:
        before = page.read_text(encoding="utf-8")
        after = MARKED.sub(lambda found: found["opening"] + _wanted(found, known) + found["closing"], before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(page)
    return changed


def check_pages(figures: Sequence[Figure], place: Place, *, complete: bool = True) -> list[str]:
    """Return a line for each text in a page that the saved rows do not give, and for each comment that is not read.

    `complete`: these are all figures, so that a page can name no other.
    """
    try:
        known = _known(figures, place)
    except RunError as error:
        return [str(error)]
    problems = [f"{page.name}: {problem}" for page in place.pages for problem in _problems(page, known)]
    unknown = {figure for figure, _ in named_in(place.pages)} - set(known) if complete else set()
    names = ", ".join(one.name for one in figures)
    return problems + [f"a page names the figure {name!r}; the figures are {names}" for name in sorted(unknown)]


def named_in(pages: Iterable[Path]) -> set[tuple[str, str]]:
    """Return all pairs of a figure and a name of its texts that pages name."""
    return {(found["figure"], found["name"]) for page in pages for found in MARKED.finditer(page.read_text("utf-8"))}


def _known(figures: Sequence[Figure], place: Place) -> dict[str, dict[str, str]]:
    named = {figure for figure, _ in named_in(place.pages)}
    return {one.name: texts_of(one, rows.read(place.rows, one.experiments)) for one in figures if one.name in named}


def _wanted(found: re.Match[str], known: Mapping[str, Mapping[str, str]]) -> str:
    """Return the text that belongs between two comments; that of a figure which is not asked for stays."""
    figure, name = found["figure"], found["name"]
    if figure not in known:
        return found["text"]
    if name not in known[figure]:
        raise RunError(f"figure {figure} has no {name!r}; its texts are {', '.join(known[figure])}")
    return known[figure][name]


def _problems(page: Path, known: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    if len(MARKED.findall(text)) != text.count(OPENING):
        yield f"a comment about a figure cannot be read; write {FORM}"
    if re.search(rf"^\s*{OPENING}", text, re.M):
        yield f"a line begins with a comment about a figure, which Markdown takes for a block of HTML; write {FORM}"
    for found in MARKED.finditer(text):
        try:
            wanted = _wanted(found, known)
        except RunError as error:
            yield str(error)
            continue
        if found["text"] != wanted:
            what = f"{found['name']} of {found['figure']}"
            yield f"{what} is {found['text']!r} here and {wanted!r} in the saved rows; run kvlab figures"
