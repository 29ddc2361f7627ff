"""Prefill chunks are sized by time."""

from kvlab.decoder.pace import LEAST, STRETCH, Pace


def test_alone_a_prompt_gets_the_most():
    assert Pace(512).chunk(prefilling=1, decoding=0) == 512


def test_beside_decoding_a_chunk_takes_as_long_as_granted():
    pace = Pace(512)
    for _ in range(20):
        pace.saw(0.010, prefilled=0, decoded=8)
        pace.saw(0.110, prefilled=500, decoded=8)  # 0.1 s of it is prefill: 5,000 tokens a second
    assert pace.chunk(prefilling=1, decoding=8) == round(STRETCH * 0.010 * 5000)
    assert pace.chunk(prefilling=2, decoding=8) == round(STRETCH * 0.010 * 5000 / 2)


def test_chunks_stay_in_bounds_whatever_was_seen():
    pace = Pace(64)
    pace.saw(1e-9, prefilled=0, decoded=1)
    pace.saw(10.0, prefilled=1, decoded=1)
    assert pace.chunk(1, 1) == LEAST
    pace.saw(10.0, prefilled=0, decoded=1)
    pace.saw(1e-9, prefilled=1000, decoded=0)
    assert pace.chunk(1, 1) == 64
