"""The report: one file, no network; it opens with a verdict, and says nothing of what did not run."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, Row, report, row
from kvlab.results.captions import figures_of_rows
from kvlab.results.load import OTHER_LOAD
from kvlab.results.report import report_html
from kvlab.results.spans import SPANS, Spans, spans_key

WORDS_OF_KINDS = ("window", "scorer", "codec", "restart", "diamond", "needle", "reuse")
"""Words of captions about kinds of policies and of runs that not every run has."""


def some_results(policy: str = "rotating:window=8") -> Results:
    recorder = Recorder()
    for request in range(2):
        tags = {"turn": request + 1, "conversation": "c"}
        recorder.emit(events.Submitted(request, request, 20 + request, 4, tags))
        recorder.emit(events.Evicted(request, request, 0, 0, np.array([[4, 5, 6]], dtype=np.int32), 12))
        recorder.emit(events.Token(request, request + 0.1, 5, 1, 1000))
        recorder.emit(events.Finished(request, request + 0.2, "stop", 2, 1000))
    return Results(some_rows(policy), {"commit": "</script><b>", "model": "tiny"}, {policy: recorder})


def some_rows(*policies: str, right: int = 1, turns: int = 2, said: bool = True, **where: Any) -> list[Row]:
    made = []
    for i, policy in enumerate(policies):
        for turn in range(1, turns + 1):
            at = {"turn": turn, "phase": "cold", "conversation": "c", **where}
            values = {"ttft_ms": 100 + i, "cached_tokens": 5, "prompt_tokens": 9, "kv_bytes_live": 1000 * (i + 1)}
            made += [row(policy, "agent", metric, value, **at) for metric, value in values.items()]
            made.append(row(policy, "agent", "accuracy", right if i == 0 else 0, **at))
            if said:
                text = f"The code is #41{i}."
                made.append(row(policy, "agent", "text", 4, **at, text=text, question="Which code?", wanted="#410"))
    return made


def page_of(results: Results) -> str:
    """The page without Vega, a megabyte that the first tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "vega_scripts", str)
        return report_html(results, title="t", lead="l")


def markup(page: str) -> str:
    return re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)


def test_all_charts_share_one_copy_of_the_scripts() -> None:
    page = report_html(some_results(), title="A <run>", lead="Lead")
    specs = json.loads(page.rsplit("const specs = ", 1)[1].split(";\n", 1)[0])
    # Two of turns, accuracy, live KV, what was evicted of one prompt, and the map.
    assert len(specs) == page.count("<div id='chart") == 6
    assert page.count("window.vegaEmbed=") == 1
    assert page.count("</script") == 2 and "A &lt;run&gt;" in page
    assert len(page) < 2_000_000


def test_report_fetches_no_file() -> None:
    page = report_html(some_results(), title="t", lead="l")
    plain = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in plain and "src=" not in plain and "@import" not in plain and "url(" not in plain
    specs = json.loads(page.rsplit("const specs = ", 1)[1].split(";\n", 1)[0])
    assert not any("url" in spec.get("data", {}) for spec in specs)


def test_only_charts_with_data() -> None:
    results = Results([row("full", "retrieval", "ttft_ms", 1, turn=1)], {})
    assert list(figures_of_rows(results.frame(), {})) == []
    assert "vegaEmbed(" in page_of(results) and "What it said" not in page_of(results)


def test_report_opens_with_the_verdict_then_quality_against_bytes() -> None:
    page = markup(page_of(Results(some_rows("full", "knorm"), {})))
    places = [
        page.index(part) for part in ("Of 2 policies", "<div id='chart0'", "<table", "What it said", "What to see")
    ]
    assert places == sorted(places)
    spec = json.loads(
        page_of(Results(some_rows("full", "knorm"), {})).rsplit("const specs = ", 1)[1].split(";\n", 1)[0]
    )
    assert "Quality against bytes" in spec[0]["title"]["text"]


def test_the_command_that_made_it_is_shown_to_be_copied() -> None:
    page = markup(page_of(Results(some_rows("full"), {"command": "kvlab compare --policies 'full,<b>'"})))
    assert "The command that made it" in page and "kvlab compare --policies &#x27;full,&lt;b&gt;&#x27;" in page
    assert "command that made it" not in markup(page_of(Results(some_rows("full"), {})))


@pytest.mark.parametrize("policies", [("full",), ("full", "paged"), ("quantized:bits=4",), ("knorm", "random")])
def test_captions_are_silent_about_kinds_that_did_not_run(policies: tuple[str, ...]) -> None:
    """No caption speaks of windows, scorers, codecs, restarts or needles where the rows have none."""
    page = markup(page_of(Results(some_rows(*policies), {}))).lower()
    assert not [word for word in WORDS_OF_KINDS if re.search(rf"\b{word}", page)]
    for name in ("tiered", "rotating", "snapkv"):
        assert name not in page


def test_captions_name_numbers_of_the_rows() -> None:
    rows = Results(some_rows("full", "paged"), {}).frame()
    ttft, cached, accuracy = figures_of_rows(rows, {})
    assert ttft.see == "At turn 2, the first token of `full` takes 100 ms, that of `paged` 101 ms."
    assert "does not compute 5 of 9 prompt tokens again" in cached.see
    assert accuracy.see == "Most right: `full` with 2 of 2; fewest: `paged` with 0."


def test_a_busy_machine_is_noted_and_an_idle_one_is_not() -> None:
    rows = some_rows("full", "paged")
    busy = page_of(Results(rows, {OTHER_LOAD: {"full": [0.02], "paged": [0.43]}}))
    assert "The machine was busy in 1 of 2 runs" in busy and "43%" in busy
    assert "machine was busy" not in page_of(Results(rows, {OTHER_LOAD: {"full": [0.02], "paged": [0.05]}}))
    assert "machine was busy" not in page_of(Results(rows, {}))


def test_question_and_needle_are_marked_where_known() -> None:
    results = some_results()
    known = {spans_key("c", 2): Spans(21, (15, 18), ((4, 6),)).to_json()}
    results.recorders["rotating:window=8"].provenance[SPANS] = json.loads(json.dumps(known))
    page = page_of(results)
    assert "is still in 0% of the layers and heads under <code>rotating:window=8</code>." in page
    assert "the question and the needle" in page
    assert "the needle" not in page_of(some_results())


def test_each_point_of_a_grid_has_its_own_verdict_and_fold() -> None:
    rows = [r for n in (1, 4) for r in some_rows("full", "knorm", n=n)]
    page = markup(page_of(Results(rows, {})))
    assert page.count("Of 2 policies") == 2 and "<summary>n 4</summary>" in page and page.count("What it said") == 2


def test_policies_and_texts_of_users_are_escaped() -> None:
    rows = some_rows("full")
    rows += [row("mine:<i>", "agent", "text", 1, turn=1, conversation="<u>", text="<b>x", question="<q>", wanted="<w>")]
    page = markup(page_of(Results(rows, {})))
    assert not re.search(r"<(b>x|q>|w>|u>|i>)", page) and "&lt;b&gt;x" in page
