"""Causes of recompute: by how a prompt differs from the one before it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.charts import recompute_causes as drawn
from kvlab.cli import main
from kvlab.errors import RunError
from kvlab.replay import TraceError, block_trace, read_capacity, recompute_causes, simulate
from kvlab.replay.causes import APPENDED, CAUSES, COLD_START, COMPACTION, EDITED_HEAD, EVICTED, previous_requests
from tests.chart_kit import marks

LONG = list(range(100))
HEAD = LONG[:10]


def cause_of(*chains: list[int]) -> tuple[str, int]:
    """Cause and tokens of the last of a conversation's prompts."""
    found = recompute_causes(block_trace("made", 10, chains, sessions=[0] * len(chains)))
    return CAUSES[found.cause[-1]], int(found.tokens[-1])


@pytest.mark.parametrize(
    ("prompt", "cause", "tokens"),
    [
        (LONG + [200, 201], APPENDED, 20),
        (LONG[:95] + [200, 201, 202], APPENDED, 30),
        (HEAD + list(range(300, 395)), EDITED_HEAD, 950),
        (list(range(300, 400)), EDITED_HEAD, 1000),
        (HEAD + list(range(300, 320)), COMPACTION, 200),
        (LONG, APPENDED, 0),
    ],
)
def test_a_prompt_is_compared_with_the_one_before(prompt: list[int], cause: str, tokens: int) -> None:
    assert cause_of(LONG, prompt) == (cause, tokens)


def test_a_prompt_that_goes_on_from_an_older_one_of_its_conversation_appends() -> None:
    assert cause_of(LONG, [*HEAD, 500], [*LONG, 200]) == (APPENDED, 10)


def test_first_prompts_are_cold_but_for_what_others_have_in_common_with_them() -> None:
    trace = block_trace("made", 10, [LONG, [*HEAD, 300], [*HEAD, 300, 301]], sessions=[0, 1, 1])
    found = recompute_causes(trace)
    assert [CAUSES[one] for one in found.cause] == [COLD_START, COLD_START, APPENDED]
    assert found.tokens.tolist() == [1000, 10, 10]


def test_what_a_small_tier_lost_was_evicted() -> None:
    chains = [[*range(1000 * one, 1000 * one + 5)] for one in (1, 2, 1, 2)]
    trace = block_trace("made", 10, chains, sessions=[0, 1, 0, 1])
    found = recompute_causes(trace, simulate(trace, "lru", read_capacity("5", trace)).hit_tokens)
    rows = {(row["cause"], row["metric"]): row["value"] for row in found.rows}
    assert rows == {
        (COLD_START, "recomputed_tokens"): 100, (COLD_START, "requests"): 2,
        (EVICTED, "recomputed_tokens"): 100, (EVICTED, "requests"): 2,
    }  # fmt: skip
    assert "evicted" in str(found) and "100 of" not in found.title


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=5)), min_size=2, max_size=20))
def test_causes_sum_up_to_what_is_computed(requests: list[tuple[int, list[int]]]) -> None:
    sessions = [session for session, _ in requests]
    trace = block_trace("made", 4, [chain for _, chain in requests], sessions=sessions)
    if len(set(sessions)) == len(sessions):
        with pytest.raises(TraceError, match="which requests are of one conversation"):
            recompute_causes(trace)
        return
    small = read_capacity("3", trace) if trace.unique else read_capacity("inf", trace)
    hits = simulate(trace, "lru", small).hit_tokens
    rows = recompute_causes(trace, hits).rows
    assert sum(row["value"] for row in rows if row["unit"] == "tokens") == trace.input_tokens.sum() - hits.sum()


@given(st.lists(st.integers(0, 4), max_size=30))
def test_previous_requests_are_the_last_of_the_same_conversation(sessions: list[int]) -> None:
    last: dict[int, int] = {}
    wanted = []
    for at, session in enumerate(sessions):
        wanted.append(last.get(session, -1))
        last[session] = at
    assert previous_requests(np.array(sessions, np.int32)).tolist() == wanted


def test_chart_has_a_bar_a_cause_the_largest_first() -> None:
    trace = block_trace("made", 10, [LONG, [*LONG, 1000], list(range(300, 390))], sessions=[0, 0, 0])
    spec = recompute_causes(trace).chart().to_dict()
    assert marks(spec)[0]["encoding"]["y"]["sort"] == [COLD_START, EDITED_HEAD, APPENDED]
    assert "50.0 %, 1 request" not in json.dumps(spec) and "52.4 %, 1 request" in json.dumps(spec)
    with pytest.raises(RunError, match="no causes"):
        drawn(recompute_causes(trace).frame().filter(False))


def test_command_prints_causes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.jsonl"
    rows = [{"block_tokens": 16}, *({"hash_ids": [*range(n)], "t": n, "session": "a"} for n in range(1, 9))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(file), "--causes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["cause"], row["value"]) for row in found if row["metric"] == "recomputed_tokens"} == {
        (COLD_START, 16), (APPENDED, 112)
    }  # fmt: skip
    assert main(["replay", str(file), "--causes"]) == 0
    assert "appended" in capsys.readouterr().out
    assert main(["replay", str(file), "--causes", "--ram", "5"]) == 2
    assert "--causes and --ram exclude each other" in capsys.readouterr().err
