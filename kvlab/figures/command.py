"""The work of ``kvlab figures``, by its options."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.figures.build import Place, build, judge, measured, rerun, source_tree
from kvlab.figures.check import check as check_figures
from kvlab.figures.check import contradictions
from kvlab.figures.confirm import confirm as confirm_rows
from kvlab.figures.declared import chosen
from kvlab.figures.pages import check_pages, fill
from kvlab.figures.stack_page.page import check_stack, fill_stack
from kvlab.figures.stale import stale
from kvlab.provenance import commit, document


def figures_command(
    names: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    check: bool = False,
    confirm: bool = False,
    out: Path | None = None,
    place: Place | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Return the document of all claims with their measured values, and a line for each error.

    A claim that does not hold is wrong under `check` only; a figure is drawn all the same. With `confirm`, saved rows
    of older code are signed where a sample of their cells comes out the same. `out` takes the pictures and, where rows
    are measured again, those in `out/rows`: the source tree stays as it is. Raises KvlabError.
    """
    asked, place = chosen(names), place or source_tree()
    problems: list[str] = []
    if confirm:
        if fresh or check or out is not None:
            raise RunError("--confirm signs the saved rows, and no others: leave out --rerun, --check and --out")
        problems += confirm_rows(measured(asked, place.rows), place, _stores(), progress=progress)
    with tempfile.TemporaryDirectory(prefix="kvlab-figures-") as temporary:
        rows = place.rows
        if fresh:
            rows = out / "rows" if out else Path(temporary) / "rows" if check else place.rows
            stores = _stores()
            everything = asked if rows != place.rows else _with_siblings(names)
            problems += rerun(everything, place, rows, stores, progress=progress)
            shutil.rmtree(stores, ignore_errors=True)
        figures = asked if names and not fresh else measured(asked, rows)
        unmeasured = [
            f"{figure.name}: it was never measured; kvlab figures --rerun --only {figure.name}"
            for figure in asked
            if figure not in figures
        ]
        there = dataclasses.replace(place, rows=rows, pictures=out or place.pictures)
        if check:
            problems += [] if fresh else unmeasured
            problems += check_figures(figures, place)
            problems += check_pages(figures, place, complete=not names)
            problems += check_stack(place)
            problems += contradictions(figures, there, fresh=fresh)
            problems += [] if fresh else stale(figures, place.experiments, place.rows)
        if not check or out is not None:
            drawn = measured(_with_siblings(names), rows) if fresh and not out else figures
            written = build(drawn, there, progress=progress)
            print("\n".join([*([] if fresh else unmeasured), f"{counted(len(written), 'file')} in {there.pictures}"]))
            if out is None:
                written = list(dict.fromkeys([*fill(measured(chosen(()), place.rows), place), *fill_stack(place)]))
                print(f"numbers written into {', '.join(page.name for page in written) or 'no page: all are right'}")
        judged = judge(figures, rows, fresh=fresh)
    for figure, _, verdict in judged:
        print(f"{'holds' if verdict.holds else 'FAILS'}  {figure.name}: {verdict}")
    claims = [
        {
            "figure": figure.name,
            "claim": verdict.claim.text,
            "policy": verdict.claim.of.where.get("policy", ""),
            "workload": saved.rows["workload"][0],
            "metric": "ratio" if verdict.claim.to else verdict.claim.of.metric,
            "value": verdict.value,
            "unit": verdict.claim.unit,
            "at_most": verdict.claim.at_most,
            "at_least": verdict.claim.at_least,
            "tolerance": verdict.claim.tolerance,
            "holds": verdict.holds,
            **({"of": str(verdict.claim.of), "to": str(verdict.claim.to)} if verdict.claim.to else {}),
        }
        for figure, saved, verdict in judged
    ]
    return document("figures", claims), problems


def _stores() -> Path:
    """Return the folder of a fresh run's cells: a killed run continues at the same commit, other code starts again."""
    at = commit()
    name = at[:12] if at and not at.endswith("+dirty") else "uncommitted"
    folder = Path("runs") / "figures" / name
    if name == "uncommitted":
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _with_siblings(names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the figures of these names and those that share an experiment with them: their rows change together."""
    wanted = {name for figure in chosen(names) for name in figure.experiments}
    return tuple(figure for figure in chosen(()) if wanted & set(figure.experiments))
