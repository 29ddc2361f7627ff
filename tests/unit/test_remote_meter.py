"""Reading from the remote or computing: what a decoder learns of both, and which matches it leaves unread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.decoder.reuse.remote_meter import RemoteMeter
from kvlab.decoder.reuse.restore_meter import PATIENCE, RestoreMeter
from kvlab.store import Match
from kvlab.store.matches import Piece

BLOCK, TOKEN_BYTES = 16, 1000


def meter(token_s: float = 0.001) -> RemoteMeter:
    """Return a meter that knows how long prompts take."""
    computing = RestoreMeter()
    for n in (200, 400, 800):
        computing.computed(0, n, token_s * n)
    return RemoteMeter(computing)


def match(*tiers: str) -> Match:
    """Return a match of one block from each of these tiers, in this order."""
    pieces = tuple(Piece(bytes([at]), at * BLOCK, BLOCK, BLOCK, tier) for at, tier in enumerate(tiers))
    return Match(len(tiers) * BLOCK, pieces, {tier: tiers.count(tier) * BLOCK for tier in tiers})


def reads(to: RemoteMeter, *tokens: int, start_s: float, token_s: float) -> None:
    for n in tokens:
        to.read(n, n * TOKEN_BYTES, start_s + n * token_s)


def test_nothing_is_refused_while_nothing_is_known() -> None:
    long = match(*["remote"] * 9)
    unknown = meter()
    assert unknown.shortened(long) is long
    without_prompts = RemoteMeter(RestoreMeter())
    reads(without_prompts, 100, 1000, start_s=9.0, token_s=9.0)
    assert without_prompts.shortened(long) is long


def test_prompts_beyond_the_break_even_are_read_and_shorter_ones_computed() -> None:
    knows = meter(token_s=0.001)
    reads(knows, 64, 640, start_s=0.05, token_s=0.0005)  # equal at 100 tokens
    for blocks in range(1, 12):
        asked = match(*["remote"] * blocks)
        found = knows.shortened(asked)
        assert (found is asked) == (blocks * BLOCK >= 100)
        if found is not asked:
            assert (found.tokens, found.pieces, found.by_tier, found.miss) == (0, (), {}, "computed_sooner")


def test_what_lies_nearer_is_kept_of_a_match_that_is_not_read_on() -> None:
    knows = meter()
    reads(knows, 64, 640, start_s=9.0, token_s=0.0)
    found = knows.shortened(match("ram", "ssd", "remote", "remote"))
    assert found.tokens == 2 * BLOCK and found.by_tier == {"ram": BLOCK, "ssd": BLOCK} and found.miss
    near = match("ram", "ssd")
    assert knows.shortened(near) is near


def test_a_remote_that_became_quicker_is_read_again_after_a_while() -> None:
    knows, asked = meter(), match(*["remote"] * 5)
    reads(knows, 64, 640, start_s=9.0, token_s=0.0)
    assert [knows.shortened(asked) is asked for _ in range(PATIENCE + 1)] == [False] * PATIENCE + [True]


def test_one_length_alone_does_not_condemn_longer_reads() -> None:
    knows = meter()
    reads(knows, 16, start_s=0.05, token_s=0.0005)
    assert knows.reading_s(640) == knows.reading_s(16) == pytest.approx(0.058)


@given(
    st.floats(0, 1),
    st.floats(1e-6, 1e-2),
    st.lists(st.integers(1, 5000), min_size=2, max_size=16),
    st.integers(1, 9999),
)
def test_start_and_rate_are_found_from_any_reads_of_different_lengths(
    start_s: float, token_s: float, tokens: list[int], asked: int
) -> None:
    knows = meter()
    reads(knows, *tokens, 2 * max(tokens), start_s=start_s, token_s=token_s)
    assert knows.reading_s(asked) == pytest.approx(start_s + token_s * asked, rel=1e-3)


class Clock:
    """A clock, and a sink that gives no memory of its own."""

    def __init__(self) -> None:
        self.now, self.taken = 0.0, list[int]()

    def __call__(self) -> float:
        return self.now

    def targets(self, arrays: Sequence[Any], at: int) -> None: ...

    def take(self, payload: Any, at: int) -> None:
        self.taken.append(at)


def test_only_blocks_of_the_remote_are_timed() -> None:
    knows, clock = meter(), Clock()
    asked = match("ram", "remote", "ssd", "remote", "remote")
    timed = knows.timed(asked, clock, clock)
    payload = {"kv": np.zeros((1, BLOCK, 100), np.uint8)}
    clock.now += 5.0
    timed.take(payload, 0)
    clock.now += 0.2
    timed.take(payload, BLOCK)
    clock.now += 5.0
    timed.targets([], 2 * BLOCK)
    clock.now += 5.0  # of which nobody says how much was the SSD's
    timed.take(payload, 3 * BLOCK)
    clock.now += 0.4
    timed.take(payload, 4 * BLOCK)
    timed.finish()
    assert clock.taken == [0, BLOCK, 3 * BLOCK, 4 * BLOCK]
    assert knows.reading_s(2 * BLOCK) == pytest.approx(0.6)
