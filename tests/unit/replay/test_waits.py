"""Waits of requests by a speed, the queue, and whether to restore or to compute again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.replay import block_trace
from kvlab.replay.waits import load, queue_s, service_s
from kvlab.speed import Speed
from kvlab.store.restore_choice import tokens_to_restore

SPEED = Speed(0.01, base_s=0.5, token2_s=1e-5, ssd=1000.0, memory=10_000.0, restore_s=0.2)
RUNS = st.lists(st.tuples(st.sampled_from(["ram", "ssd"]), st.integers(1, 40)), max_size=4)
SPEEDS = st.builds(
    lambda token, token2, ssd, memory, base: Speed(token, token2_s=token2, ssd=ssd, memory=memory, restore_s=base),
    st.floats(1e-3, 1.0), st.floats(0, 1e-2), st.floats(1.0, 1e4), st.floats(1.0, 1e4), st.floats(0, 5.0),
)  # fmt: skip


def test_a_request_restores_and_then_computes() -> None:
    trace = block_trace("made", 10, [[1, 2, 3, 4]] * 3)
    found = service_s(trace, np.array([0, 10, 40]), np.array([0, 20, 0]), SPEED, 100)
    assert found[0] == pytest.approx(0.5 + 0.4 + 1e-5 * 40**2)
    assert found[1] == pytest.approx(0.5 + 0.2 + 1000 / 10_000 + 2000 / 1000 + 0.1 + 1e-5 * (40**2 - 30**2))
    assert found[2] == pytest.approx(0.5 + 0.2 + 4000 / 10_000 + 0.01 + 1e-5 * (40**2 - 39**2)), "the last is computed"


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=30))
def test_one_server_serves_one_after_the_other(steps: list[tuple[float, float]]) -> None:
    times, service = np.cumsum([gap for gap, _ in steps]), np.array([taken for _, taken in steps])
    free, waits = 0.0, []
    for arrived, taken in zip(times, service, strict=True):
        begun = max(arrived, free)
        waits.append(begun - arrived)
        free = begun + taken
    assert queue_s(times, service) == pytest.approx(np.array(waits), abs=1e-9)


def test_load_is_work_over_time() -> None:
    assert load(np.array([0.0, 5.0, 10.0]), np.array([1.0, 2.0, 2.0])) == 0.5
    assert load(np.array([3.0]), np.array([1.0])) == float("inf")


def wait(speed: Speed, runs: list[tuple[str, int]], restored: int, prompt: int, token_bytes: int) -> float:
    """Seconds where the first ``restored`` tokens come from their tiers and the others are computed."""
    taken, left = {"ram": 0, "ssd": 0}, restored
    for tier, tokens in runs:
        taken[tier] += min(tokens, left) * token_bytes
        left -= min(tokens, left)
    at = min(restored, prompt - 1)
    return speed.restore(taken["ram"], taken["ssd"]) + speed.prefill(at, prompt - at)


@given(SPEEDS, RUNS, st.integers(1, 60), st.integers(1, 50))
def test_no_other_number_of_restored_tokens_answers_sooner(
    speed: Speed, runs: list[tuple[str, int]], more: int, token_bytes: int
) -> None:
    known = sum(tokens for _, tokens in runs)
    prompt = known + more
    chosen = tokens_to_restore(speed, runs, prompt, token_bytes)
    least = min(wait(speed, runs, n, prompt, token_bytes) for n in range(known + 1))
    assert wait(speed, runs, chosen, prompt, token_bytes) == pytest.approx(least, rel=1e-9)


def test_a_quick_drive_restores_and_a_slow_one_computes() -> None:
    runs = [("ram", 100), ("ssd", 900)]
    assert tokens_to_restore(Speed(0.01, ssd=1e9), runs, 1000, 1000) == 1000
    assert tokens_to_restore(Speed(0.01, ssd=1e4), runs, 1000, 1000) == 100
    assert tokens_to_restore(Speed(0.01, ssd=1e4), [("ssd", 900)], 1000, 1000) == 0
    assert tokens_to_restore(Speed(0.01), [], 1000, 1000) == 0


def test_attention_makes_long_prompts_worth_restoring_from_a_drive_that_is_too_slow_for_short_ones() -> None:
    speed = Speed(0.001, token2_s=1e-6, ssd=5e5)
    assert tokens_to_restore(speed, [("ssd", 500)], 600, 1000) == 0
    assert tokens_to_restore(speed, [("ssd", 5000)], 5100, 1000) == 5000
