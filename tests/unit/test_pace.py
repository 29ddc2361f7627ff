"""Work on prompts is sized by time."""

import pytest

from kvlab.decoder.prefill.budget import ASIDE, CHANGED, EVEN, FIRST, LEAST, ROUND, SOON, STALE, PrefillBudget


def machine(
    pace: PrefillBudget, token_s: float, *, step_s: float = 0.010, rounds: int = 80, decoding: int = 8
) -> list[int]:
    """What was done a round on a machine on which a step and every token in a layer take this long."""
    done: list[int] = []
    for _ in range(rounds):
        work = pace.work(decoding)
        assert work is not None
        pace.saw(step_s + (done[-1] if done else 0) * token_s, work, decoding)
        done.append(work)
    return done


def quiet(pace: PrefillBudget, *, step_s: float = 0.010, decoding: int = 8, rounds: int = 10) -> None:
    for _ in range(rounds):
        pace.work(decoding)
        pace.saw(step_s, 0, decoding)


@pytest.fixture
def pace() -> PrefillBudget:
    pace = PrefillBudget(512, depth=6)
    quiet(pace)
    return pace


def test_alone_a_prompt_gets_the_most():
    assert PrefillBudget(512).chunk(prefilling=1, decoding=0) == 512
    assert PrefillBudget(512).work(decoding=0) is None


@pytest.mark.parametrize("token_s", [0.0002, 0.00005])
def test_beside_decoding_a_round_takes_as_long_as_granted(pace, token_s):
    granted = (ROUND - 1) * 0.010 / token_s
    assert machine(pace, token_s)[-1] == pytest.approx(granted, rel=0.15)


def test_prompts_share_what_is_granted(pace):
    work = machine(pace, 0.0002)[-1]
    assert pace.chunk(1, 8) == pytest.approx(work, abs=EVEN)
    assert 4 * pace.chunk(4, 8) == pytest.approx(work, abs=4 * EVEN)


def test_a_chunk_of_a_deep_model_is_through_soon():
    deep = PrefillBudget(512, depth=64)
    quiet(deep)
    layers_a_round = machine(deep, 0.0001)[-1] / deep.chunk(1, 8)
    assert 0.6 * SOON <= 64 / layers_a_round <= 1.3 * SOON


def test_it_stays_in_bounds_whatever_was_seen():
    for token_s, bound in ((1.0, LEAST), (1e-9, 64 * 6)):
        pace = PrefillBudget(64, depth=6)
        quiet(pace)
        assert machine(pace, token_s)[-1] == bound
    assert PrefillBudget(512).work(8) == FIRST


def test_a_lone_slow_round_changes_nothing(pace):
    before = machine(pace, 0.0002)[-1]
    pace.saw(0.5, before, 8)
    assert pace.work(8) == pytest.approx(before, rel=0.15)


def test_a_step_is_measured_again_when_it_may_have_changed(pace):
    before = machine(pace, 0.0002, rounds=STALE)
    assert before.count(0) == 0
    after = machine(pace, 0.0002, step_s=0.020, rounds=12 * STALE)
    assert after[-1] == pytest.approx(2 * before[-1], rel=0.15)
    assert after.count(0) <= 13 * ASIDE


def test_it_is_when_many_sequences_join(pace):
    before = machine(pace, 0.0002)[-1]
    after = machine(pace, 0.0002, step_s=0.040, decoding=32, rounds=60)
    assert after.index(0) <= CHANGED
    assert after.count(0) == ASIDE
    assert after[-1] == pytest.approx(4 * before, rel=0.15)


def test_without_a_quiet_step_one_is_made():
    pace = PrefillBudget(512, depth=6)
    done = machine(pace, 0.0002)
    assert done.count(0) == ASIDE
    assert done[-1] == pytest.approx((ROUND - 1) * 0.010 / 0.0002, rel=0.15)


@pytest.fixture
def by_time() -> PrefillBudget:
    pace = PrefillBudget(512, depth=4, preemptible=True)
    quiet(pace)
    return pace


def test_time_decides_where_a_prompt_can_be_left_anywhere(by_time, pace):
    assert by_time.until(100.0, 8) == pytest.approx(100 + ROUND * 0.010)
    assert by_time.until(100.0, 0) == pace.until(100.0, 8) == float("inf")


def test_a_chunk_then_takes_so_many_rounds(by_time):
    for _ in range(200):
        if by_time.work(8):
            by_time.saw(ROUND * 0.010, 60, 8)
        else:
            by_time.saw(0.010, 0, 8)
    assert by_time.chunk(1, 8) == pytest.approx(60 * SOON / 4, abs=EVEN)
    assert by_time.chunk(8, 8) == pytest.approx(60 * SOON / 4 / 8, abs=EVEN)


def test_without_a_step_to_go_by_one_is_made_first():
    pace = PrefillBudget(512, depth=4, preemptible=True)
    for _ in range(ASIDE):
        assert pace.work(1) == 0
        pace.saw(0.010, 0, 1)
    assert pace.work(1) and pace.until(0.0, 1) == pytest.approx(ROUND * 0.010)
