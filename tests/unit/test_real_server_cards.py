"""What audits of real servers found, without being told, stands in the cards that docs/calibration.md quotes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvlab.audit.report_card import load_card
from tests.unit.test_real_servers import script

ROOT = Path(__file__).resolve().parents[2]
CARDS = {file.stem: load_card(file) for file in (ROOT / "experiments" / "rows" / "real_server_cards").glob("*.json")}


def found(card: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["probe"], row["metric"]): row for row in CARDS[card]["rows"]}


def bad(card: str) -> set[tuple[str, str]]:
    return {key for key, row in found(card).items() if row["verdict"] == "bad"}


def size(card: str) -> float:
    """Prompt tokens of the probe of a restart."""
    return float(found(card)["restart", "prompt_tokens"]["value"])


def test_the_page_shows_the_cards():
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    assert script("table").with_cards(page) == page


@pytest.mark.parametrize("card", CARDS)
def test_a_card_says_what_was_run_and_when(card):
    observed = CARDS[card]["provenance"]["observed"]
    assert observed["date"] and observed["model"] and observed["setup"].startswith(card.removesuffix("-flipped"))
    assert {"kvlab", "vmlx", "vllm-mlx", "mlx-lm", "llama.cpp"} & set(observed), "a version"


def test_vmlx_serves_flipped_bits_and_the_audit_says_so():
    restart = found("vmlx-flipped")
    assert CARDS["vmlx-flipped"]["provenance"]["observed"]["files_flipped_at_restart"][0] > 0
    assert restart["restart", "cached_tokens"]["value"] > 0.9 * size("vmlx-flipped")
    assert bad("vmlx-flipped") == {("restart", "same_answer")}


def test_kvlab_computes_anew_what_was_flipped_and_gives_the_same_answer():
    restart = found("kvlab-tiered-flipped")
    assert CARDS["kvlab-tiered-flipped"]["provenance"]["observed"]["files_flipped_at_restart"][0] > 0
    assert restart["restart", "same_answer"]["verdict"] == "good"
    assert restart["restart", "cached_tokens"]["value"] == 0
    assert bad("kvlab-tiered-flipped") == {("restart", "cached_tokens")}, (
        "its KV was spoilt, and it says that it is gone"
    )


def test_mlx_lm_dies_of_an_exact_hit_and_the_audit_says_so():
    assert bad("mlx-lm") == {("continuation", "continued"), ("continuation", "alive")}


def test_llama_server_runs_four_agents_at_a_time():
    assert [found("llama-server")["clients", f"at_once_{count}"]["value"] for count in (4, 8, 32)] == [4, 4, 4]
    assert bad("llama-server") == set()


def test_nothing_is_wrong_with_kvlab():
    assert bad("kvlab-tiered") == set()
    assert len(CARDS["kvlab-tiered"]["rows"]) > 100, "all probes"
    assert found("kvlab-tiered")["truth", "equal_answers"]["verdict"] == "good"
