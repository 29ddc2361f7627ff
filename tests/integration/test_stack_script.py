"""The stack's measurement at a small size: its rows have what those who read them expect."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab.results import SCHEMA
from tests.stack_script import stack

SMALL = {
    **{"systems": ("ollama",), "turns": 2, "seeds": (0,)},
    **{"agents": (1, 2), "repeats": 1, "waiting": 4, "overflowing": 1},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    out = tmp_path_factory.mktemp("stack")
    size = stack.Size(**SMALL)
    made = stack.measure(None, out, size=size)
    assert stack.measure(None, out, size=size).rows == made.rows, "a second run finds all of it"
    return pl.DataFrame(made.rows, schema=dict(SCHEMA))


def having(rows: pl.DataFrame, metric: str, **where: Any) -> pl.DataFrame:
    return rows.filter(pl.col("metric") == metric, *(pl.col(key) == value for key, value in where.items()))


def test_every_candidate_has_a_turn_after_the_restart_but_the_reference(rows: pl.DataFrame) -> None:
    turns = rows.filter(pl.col("workload") == "stack-turns")
    restarted = having(turns, "ttft_ms", phase="restart")
    assert sorted(restarted["policy"]) == ["ollama", "tiered"] and restarted["turn"].to_list() == [2, 2]
    assert having(turns, "cached_tokens", phase="restart", policy="ollama")["value"].to_list() == [0]
    for metric in ("ttft_ms", "prompt_tokens", "cached_tokens", "accuracy", "exact", "kv_bytes_live"):
        assert set(having(turns, metric)["policy"]) == {"full", "tiered", "ollama"}, metric
    assert {"kv_bytes_ram", "kv_bytes_ssd", "bytes_written"} <= set(turns["metric"])
    assert having(turns, "exact")["value"].min() == 1


def test_agents_at_once_have_times_of_their_own_and_rows_together(rows: pl.DataFrame) -> None:
    agents = rows.filter(pl.col("workload") == "stack-agents")
    assert having(agents, "ttft_ms", policy="ollama", n=2).height == 4
    for metric in ("tokens_per_s", "kv_bytes_live"):
        together = having(agents, metric, kind="together")
        assert together.height == 6 and together["value"].min() > 0, metric
    assert set(having(agents, "kv_bytes_ram", kind="together")["policy"]) == {"tiered", "ollama"}


def test_memory_is_told_for_running_and_waiting_agents(rows: pl.DataFrame) -> None:
    found = rows.filter(pl.col("workload") == "stack-memory")
    live = dict(having(found, "kv_bytes_live", kind="running").select("policy", "value").iter_rows())
    rest = dict(having(found, "kv_bytes_ram", kind="waiting").select("policy", "value").iter_rows())
    kept = dict(having(found, "hit_ratio", kind="waiting").select("policy", "value").iter_rows())
    assert 0 < live["tiered"] < live["full"] / 2, "the common prompt is held once"
    assert rest["full"] == 0 and 0 < rest["tiered"] < rest["ollama"]
    # The slot shares most of its tokens with the next agent's prompt: it is cut in place, and not saved before.
    assert kept == {"full": 0, "tiered": 1, "ollama": 0.25}
    assert rest["ollama"] > 0.5 * live["full"], "a whole sequence in the one slot"


def test_a_full_context_is_told_apart_from_one_that_grows(rows: pl.DataFrame) -> None:
    asked = rows.filter(pl.col("workload") == "stack-overflow", pl.col("kind") == "beyond")
    right = dict(having(asked, "accuracy").group_by("policy").agg(pl.col("value").mean()).iter_rows())
    assert right["full"] == right["tiered"] == 1 and right["ollama:context=1024"] < 1
    assert having(asked, "cut_tokens", policy="ollama:context=1024")["value"].min() > 0
    within = rows.filter(pl.col("workload") == "stack-overflow", pl.col("kind") == "recall")
    assert having(within, "cut_tokens")["value"].to_list() == [0] * having(within, "cut_tokens").height
