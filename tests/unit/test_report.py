"""The report: one file, no network, its data in it once."""

from __future__ import annotations

import json
import re

import numpy as np

from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, row
from kvlab.results.report import figures, report_html


def some_results(policy: str = "rotating:window=8") -> Results:
    recorder = Recorder()
    for request in range(2):
        recorder.emit(events.Submitted(request, request, 20, 4, {"turn": request + 1}))
        recorder.emit(events.Evicted(request, request, 0, 0, np.array([[4, 5, 6]], dtype=np.int32), 12))
        recorder.emit(events.Token(request, request + 0.1, 5, 1, 1000))
        recorder.emit(events.Finished(request, request + 0.2, "stop", 2, 1000))
    rows = [
        row(policy, "agent", metric, 1, turn=turn, phase="cold")
        for turn in (1, 2)
        for metric in ("ttft_ms", "cached_tokens", "prompt_tokens", "accuracy")
    ]
    return Results(rows, {"commit": "</script><b>", "model": "tiny"}, {policy: recorder})


def test_all_charts_share_one_copy_of_the_scripts() -> None:
    page = report_html(some_results(), title="A <run>", lead="Lead")
    assert len(list(figures(some_results()))) == 5
    assert page.count("<div id='chart") == 5
    assert page.count("window.vegaEmbed=") == 1
    assert page.count("</script") == 2 and "A &lt;run&gt;" in page
    assert len(page) < 2_000_000


def test_report_fetches_no_file() -> None:
    page = report_html(some_results(), title="t", lead="l")
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in markup and "src=" not in markup and "@import" not in markup
    specs = json.loads(page.rsplit("const specs = ", 1)[1].split(";\n", 1)[0])
    assert not any("url" in spec.get("data", {}) for spec in specs) and len(specs) == 5


def test_only_charts_with_data() -> None:
    results = Results([row("full", "retrieval", "ttft_ms", 1, turn=1)], {})
    assert list(figures(results)) == []
    assert "vegaEmbed(" in report_html(results, title="t", lead="l")
