"""Work on prompts is sized by the duration of rounds."""

import pytest

from kvlab.decoder.prefill.budget import (
    CHUNK_MULTIPLE_TOKENS,
    FIRST_ROUND_WORK,
    MAX_ROUND_STEPS,
    MEASURING_ROUNDS,
    MIN_ROUND_WORK,
    REMEASURE_CHANGED_ROUNDS,
    REMEASURE_ROUNDS,
    ROUNDS_PER_CHUNK,
    PrefillBudget,
)


def simulate(
    budget: PrefillBudget, token_s: float, *, step_s: float = 0.010, rounds: int = 80, decoding: int = 8
) -> list[int]:
    """Return the work of each round, on a machine where a step and each token in a layer take this long."""
    done: list[int] = []
    for _ in range(rounds):
        work = budget.work(decoding)
        assert work is not None
        budget.observe(step_s + (done[-1] if done else 0) * token_s, work, decoding)
        done.append(work)
    return done


def measure_steps(budget: PrefillBudget, *, step_s: float = 0.010, decoding: int = 8, rounds: int = 10) -> None:
    for _ in range(rounds):
        budget.work(decoding)
        budget.observe(step_s, 0, decoding)


@pytest.fixture
def budget() -> PrefillBudget:
    budget = PrefillBudget(512, depth=6)
    measure_steps(budget)
    return budget


def test_prompt_alone_gets_largest_chunks_and_unlimited_work():
    assert PrefillBudget(512).chunk(prefilling=1, decoding=0) == 512
    assert PrefillBudget(512).work(decoding=0) is None


@pytest.mark.parametrize("token_s", [0.0002, 0.00005])
def test_round_beside_decoding_sequences_takes_its_share_of_steps(budget, token_s):
    granted = (MAX_ROUND_STEPS - 1) * 0.010 / token_s
    assert simulate(budget, token_s)[-1] == pytest.approx(granted, rel=0.15)


def test_prompts_of_a_chunk_share_the_work_of_a_round(budget):
    work = simulate(budget, 0.0002)[-1]
    assert budget.chunk(1, 8) == pytest.approx(work, abs=CHUNK_MULTIPLE_TOKENS)
    assert 4 * budget.chunk(4, 8) == pytest.approx(work, abs=4 * CHUNK_MULTIPLE_TOKENS)


def test_chunk_of_a_deep_model_ends_within_its_rounds():
    deep = PrefillBudget(512, depth=64)
    measure_steps(deep)
    layers_a_round = simulate(deep, 0.0001)[-1] / deep.chunk(1, 8)
    assert 0.6 * ROUNDS_PER_CHUNK <= 64 / layers_a_round <= 1.3 * ROUNDS_PER_CHUNK


def test_work_stays_within_its_bounds_at_any_speed():
    for token_s, bound in ((1.0, MIN_ROUND_WORK), (1e-9, 64 * 6)):
        budget = PrefillBudget(64, depth=6)
        measure_steps(budget)
        assert simulate(budget, token_s)[-1] == bound
    assert PrefillBudget(512).work(8) == FIRST_ROUND_WORK


def test_single_slow_round_keeps_the_work(budget):
    before = simulate(budget, 0.0002)[-1]
    budget.observe(0.5, before, 8)
    assert budget.work(8) == pytest.approx(before, rel=0.15)


def test_step_is_measured_again_after_many_rounds(budget):
    before = simulate(budget, 0.0002, rounds=REMEASURE_ROUNDS)
    assert before.count(0) == 0
    after = simulate(budget, 0.0002, step_s=0.020, rounds=12 * REMEASURE_ROUNDS)
    assert after[-1] == pytest.approx(2 * before[-1], rel=0.15)
    assert after.count(0) <= 13 * MEASURING_ROUNDS


def test_step_is_measured_again_when_many_sequences_join(budget):
    before = simulate(budget, 0.0002)[-1]
    after = simulate(budget, 0.0002, step_s=0.040, decoding=32, rounds=60)
    assert after.index(0) <= REMEASURE_CHANGED_ROUNDS
    assert after.count(0) == MEASURING_ROUNDS
    assert after[-1] == pytest.approx(4 * before, rel=0.15)


def test_first_rounds_measure_a_step_where_none_was_seen():
    budget = PrefillBudget(512, depth=6)
    done = simulate(budget, 0.0002)
    assert done.count(0) == MEASURING_ROUNDS
    assert done[-1] == pytest.approx((MAX_ROUND_STEPS - 1) * 0.010 / 0.0002, rel=0.15)


@pytest.fixture
def timed() -> PrefillBudget:
    budget = PrefillBudget(512, depth=4, preemptible=True)
    measure_steps(budget)
    return budget


def test_preemptible_prefill_stops_by_time(timed, budget):
    assert timed.until(100.0, 8) == pytest.approx(100 + MAX_ROUND_STEPS * 0.010)
    assert timed.until(100.0, 0) == budget.until(100.0, 8) == float("inf")


def test_chunk_of_preemptible_prefill_takes_its_rounds(timed):
    for _ in range(200):
        if timed.work(8):
            timed.observe(MAX_ROUND_STEPS * 0.010, 60, 8)
        else:
            timed.observe(0.010, 0, 8)
    assert timed.chunk(1, 8) == pytest.approx(60 * ROUNDS_PER_CHUNK / 4, abs=CHUNK_MULTIPLE_TOKENS)
    assert timed.chunk(8, 8) == pytest.approx(60 * ROUNDS_PER_CHUNK / 4 / 8, abs=CHUNK_MULTIPLE_TOKENS)


def test_preemptible_prefill_waits_until_a_step_is_measured():
    budget = PrefillBudget(512, depth=4, preemptible=True)
    for _ in range(MEASURING_ROUNDS):
        assert budget.work(1) == 0
        budget.observe(0.010, 0, 1)
    assert budget.work(1) and budget.until(0.0, 1) == pytest.approx(MAX_ROUND_STEPS * 0.010)
