"""Prefill chunks are sized by time."""

from kvlab.decoder.pace import FIRST, LEAST, ROUND, Pace


def paced(token_s: float, *, step_s: float = 0.010, rounds: int = 60, prefilling: int = 1, most: int = 512) -> Pace:
    """After ``rounds`` of a machine on which a step and every prompt token take this long."""
    pace = Pace(most)
    for _ in range(10):
        pace.saw(step_s, prefilled=0, decoded=8)
    before = 0
    for _ in range(rounds):
        chunk = pace.chunk(prefilling, decoding=8) * prefilling
        pace.saw(step_s + before * token_s, prefilled=chunk, decoded=8)
        before = chunk
    return pace


def test_alone_a_prompt_gets_the_most():
    assert Pace(512).chunk(prefilling=1, decoding=0) == 512


def test_beside_decoding_a_round_takes_as_long_as_granted():
    granted = (ROUND - 1) * 0.010 / 0.0002
    assert abs(paced(0.0002).chunk(1, 8) - granted) <= 0.15 * granted
    assert abs(2 * paced(0.0002, prefilling=2).chunk(2, 8) - granted) <= 0.15 * granted


def test_chunks_stay_in_bounds_whatever_was_seen():
    assert paced(1.0).chunk(1, 8) == LEAST
    assert paced(1e-9, most=64).chunk(1, 8) == 64
    assert Pace(512).chunk(1, 8) == FIRST


def test_a_lone_slow_round_changes_nothing():
    pace = paced(0.0002)
    before = pace.chunk(1, 8)
    pace.saw(0.5, prefilled=before, decoded=8)
    assert abs(pace.chunk(1, 8) - before) <= 0.15 * before
