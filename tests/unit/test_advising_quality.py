"""Lossy designs are advised only where a measured run shows that they lose little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvlab
from kvlab.advising.errors import AdviceError
from kvlab.advising.quality import certified_codecs
from kvlab.cli import main
from kvlab.errors import RunError
from kvlab.policies import Quantized
from kvlab.results import Results, row

ITEMS = 80
LOST = {"full": 0, "quantized": 0, "quantized:bits=4": 1, "quantized:bits=2": 60, "kivi": 0, "knorm": 0}
TIGHT: dict[str, Any] = {"agents": 4, "turns": 4, "prefill": 500.0, "decode": 20.0, "memory": "16MB", "ssd": "0"}


@pytest.fixture(scope="module")
def run() -> Results:
    """A run in which 2 bits lose much, 8 and 4 bits little."""
    rows = []
    for place, (policy, lost) in enumerate(LOST.items()):
        for item in range(ITEMS):
            where: dict[str, Any] = {"conversation": str(item), "turn": 1, "seed": 0}
            rows.append(row(policy, "needle:single", "accuracy", float(item >= lost), **where))
            rows.append(row(policy, "needle:single", "kv_bytes_live", 1000.0 - place, **where))
    return Results(rows, {})


def test_codecs_that_hold_and_can_be_kept_at_rest_are_allowed(run: Results) -> None:
    found = certified_codecs(run, "accuracy:10%@90%")
    assert found.codecs == (Quantized(bits=8), Quantized(bits=4))  # kivi holds too, and no store keeps its groups
    assert found.promise == "lose at most 0.1 of accuracy (90% sure, 80 items)"


def test_a_run_in_which_no_codec_holds_is_refused(run: Results) -> None:
    few = Results([one for one in run.rows if one["policy"] in ("full", "quantized:bits=2", "knorm")], {})
    with pytest.raises(AdviceError, match="no codec that can be kept at rest holds accuracy:10%@90%"):
        certified_codecs(few, "accuracy:10%@90%")
    with pytest.raises(RunError, match="measure"):
        certified_codecs(run, "accuracy:1%@95%")


def test_advice_allows_measured_codecs_only_and_says_what_they_lose(run: Results, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "run")
    advice = kvlab.advise(quality=folder, promise="accuracy:10%@90%", what_if=False, **TIGHT)
    designs = [line["design"] for line in advice.table]
    assert any("quantized" in one for one in designs)
    assert not any("bits=2" in one or "knorm" in one for one in designs)
    if advice.choice.design.is_lossy:
        assert "Its answers lose at most 0.1 of accuracy" in str(advice)


def test_a_promise_without_a_run_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--agents", "2", "--prefill", "500", "--decode", "20", "--promise", "accuracy:5%"]) == 2
    assert "write --quality RUN too" in capsys.readouterr().err
