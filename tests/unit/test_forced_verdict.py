"""The verdict, table, charts and report of forced answers: distances from ``full``, and nothing of right answers."""

from __future__ import annotations

import re

import pytest

from kvlab.results import Results, Row, report, row
from kvlab.results.captions import figures_of_rows, pareto_figure
from kvlab.results.report import report_html
from kvlab.results.rows import TOGETHER


def forced(policy: str, *kl: float, calls: str = "", held: float = 1e6, workload: str = "") -> list[Row]:
    """Rows of a policy: a KL for each item; `calls` has a 1 for each item with an equal call, else a 0."""
    made = []
    name = workload or ("tools:x" if calls else "kl:x")
    for i, value in enumerate(kl):
        at = {"conversation": f"c{i}", "turn": 1, "seed": 0, "n": 2}
        made.append(row(policy, name, "kv_bytes_live", held, kind="text", **at))
        made.append(row(policy, name, "kl", value, kind="name" if calls else "text", **at))
        best = ("tool_flip", min(1.0, value)) if calls else ("top1", 1 - min(1.0, value))
        made.append(row(policy, name, *best, kind="name" if calls else "text", **at))
        if calls:
            made.append(row(policy, name, "equal_call", int(calls[i]), kind="call", **at))
    if not calls:
        for position in (1, 2):
            place = {"kind": TOGETHER, "position": position, "n": 2, "seed": 0}
            made.append(row(policy, name, "kl", position * sum(kl) / len(kl), **place))
    return made


def plain(policy: str, ttft: float) -> list[Row]:
    at = {"turn": 1, "conversation": "c", "seed": 0, "n": 1}
    values = {"ttft_ms": ttft, "kv_bytes_live": 2e6, "accuracy": 1}
    return [row(policy, "own", metric, value, **at) for metric, value in values.items()]


def results(*parts: list[Row]) -> Results:
    return Results([one for part in parts for one in part], {})


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([forced("full", 0, 0)], "Only `full` ran, which is no distance from itself."),
        (
            [forced("paged", 0.1, 0.3)],
            "`paged` is compared with `full`: KL 0.200, with 1.0 MB of KV.",
        ),
        (
            [forced("full", 0, 0), forced("paged", 1e-9, 0), forced("tiered", 2e-9, 1e-9)],
            "All 2 policies are equally near to `full` (KL 5e-10).",
        ),
        (
            [forced("paged", 0, 0), forced("random", 3, 4), forced("h2o", 0.5, 0.5)],
            "Of 3 policies compared with `full`, `paged` is nearest (KL 0, with 1.0 MB of KV); `random` is farthest "
            "(KL 3.500, with 1.0 MB of KV).",
        ),
        (
            [forced("a", 0, 1, calls="10"), forced("b", 2, 2, calls="11"), forced("c", 0, 0, calls="01")],
            "Of 3 policies compared with `full`, `b` is nearest (equal calls 100.0%, with 1.0 MB of KV); `a` and `c` "
            "are farthest (equal calls 50.0%).",
        ),
    ],
)
def test_verdict_says_which_is_nearest(parts: list[list[Row]], sentence: str) -> None:
    assert results(*parts).verdict().sentence == sentence


def test_verdict_names_those_whose_intervals_meet() -> None:
    apart = results(forced("a", *[0.1] * 9), forced("b", *[5.0] * 9)).verdict()
    assert apart.notes == ()
    spread = [0.0, 1.0, 2.0, 3.0, 4.0]
    meet = results(forced("a", *spread), forced("b", *reversed(spread[1:]), 1.0)).verdict()
    assert meet.notes == ("The 95 % interval of `b` meets that of the nearest: 5 items may not tell them apart.",)
    assert "One item has no interval" in results(forced("a", 0.1), forced("b", 3)).verdict().text()


@pytest.mark.parametrize("calls", ["", "01"])
def test_charts_say_what_the_rows_hold(calls: str) -> None:
    found = results(forced("full", 0, 0, calls=calls and "11"), forced("h2o", 0.5, 0.7, calls=calls, held=2e5))
    (figure,) = figures_of_rows(found.frame(), found.labels())
    assert "`h2o`" in figure.see
    pareto = pareto_figure(found.frame(), found.labels())
    assert pareto is not None
    assert ("50% of calls equal" if calls else "KL 0.6,") in pareto.see  # rows by position are no items


@pytest.mark.parametrize("calls", ["", "11"])
def test_full_alone_has_a_report(calls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "vega_scripts", str)
    page = report_html(results(forced("full", 0, 0, calls=calls)), title="t", lead="l")
    shown = re.sub(r"<script>.*?</script>|<style>.*?</style>|<[^>]*>", "", page, flags=re.DOTALL)
    assert "no distance from itself" in shown and "right" not in shown and "TTFT" not in shown


def test_forced_and_other_workloads_in_one_run_have_a_table_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class: a grid of workloads of both sorts; no policy and no workload is left out."""
    monkeypatch.setattr(report, "vega_scripts", str)
    found = results(plain("full", 50), forced("full", 0, 0), forced("h2o", 1, 1, calls="00"), plain("random", 60))
    text, page, notebook = repr(found), report_html(found, title="t", lead="l"), found._repr_html_()
    for shown in (text, page, notebook):
        assert all(heading in shown for heading in ("TTFT turn 1", "top-1", "equal calls"))
    assert text.count("h2o") == 1 and text.count("random") == 1
    assert page.count("class='card verdict'") == 3


def test_a_grade_of_ones_own_does_not_make_a_workload_forced() -> None:
    found = Results([*plain("full", 50), row("full", "own", "top1", 1, turn=1, conversation="c")], {})
    assert "TTFT" in repr(found) and "forced" not in found.verdict().text()
