"""Reading or computing: what a decoder learns of its prompts and its drive, and when a read ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvlab.decoder.reuse.restore_meter import PATIENCE, ComputedSooner, RestoreMeter
from kvlab.store.matches import Piece
from kvlab.tiers import RAM, SSD

BLOCK = 16


class Drive:
    """A clock; reading a block below RAM takes ``block_s``."""

    def __init__(self, block_s: float) -> None:
        self.now, self.block_s = 0.0, block_s

    def __call__(self) -> float:
        return self.now


def learnt(token_s: float = 0.001, token2_s: float = 0.0) -> RestoreMeter:
    meter = RestoreMeter()
    for n in (100, 200, 400, 800):
        meter.computed(0, n, token_s * n + token2_s * n * n)
    return meter


def pieces(tiers: Sequence[str]) -> list[Piece]:
    return [Piece(bytes([at]), at * BLOCK, BLOCK, BLOCK, tier) for at, tier in enumerate(tiers)]


def read(meter: RestoreMeter, drive: Drive, blocks: int | Sequence[str], prompt_blocks: int | None = None) -> int:
    """Read the blocks of a match as the store does; return how many were restored."""
    match = pieces([SSD.name] * blocks if isinstance(blocks, int) else blocks)
    watch = meter.watch(BLOCK * (prompt_blocks or len(match)) + 1, drive)
    for at, piece in enumerate(match):
        if piece.tier == RAM.name:
            continue
        try:
            watch.before(match[at:])
        except ComputedSooner:
            return at
        drive.now += drive.block_s
        watch.after(piece.length)
    return len(match)


def test_a_quick_drive_is_read_to_the_end() -> None:
    assert read(learnt(), Drive(0.001), 40) == 40


def test_a_slow_drive_costs_one_block_and_later_requests_nothing() -> None:
    meter, drive = learnt(), Drive(0.1)
    assert [read(meter, drive, 40) for _ in range(3)] == [1, 0, 0]


def test_a_slow_drive_that_was_timed_before_costs_nothing() -> None:
    meter = learnt()
    meter.timed((BLOCK, 0.1))
    assert read(meter, Drive(0.1), 40) == 0


def test_a_drive_that_was_refused_for_a_while_is_due_to_be_timed_and_read_again_if_it_is_quicker() -> None:
    meter, slow, quick = learnt(), Drive(0.1), Drive(0.001)
    assert meter.is_due
    read(meter, slow, 40)
    assert not meter.is_due
    assert [read(meter, quick, 40) for _ in range(PATIENCE)] == [0] * PATIENCE
    assert meter.is_due
    meter.timed((BLOCK, quick.block_s))
    assert read(meter, quick, 40) == 40 and not meter.is_due


def test_a_drive_that_cannot_be_timed_is_tried_again_by_a_request() -> None:
    meter, slow = learnt(), Drive(0.1)
    read(meter, slow, 40)
    meter.timed(None)
    assert read(meter, slow, 40) == 1


def test_nothing_is_refused_before_a_prompt_was_computed() -> None:
    meter = RestoreMeter()
    meter.timed((BLOCK, 9.0))
    assert read(meter, Drive(9.0), 5) == 5


def test_long_prompts_are_read_from_a_drive_that_is_too_slow_for_short_ones() -> None:
    meter, drive = learnt(0.001, 1e-6), Drive(BLOCK * 0.0015)
    assert read(meter, drive, 10) == 1
    assert read(meter, drive, 100) == 100


def test_blocks_of_ram_behind_those_of_the_drive_make_them_worth_reading() -> None:
    meter, drive = learnt(), Drive(BLOCK * 0.002)
    meter.timed((BLOCK, drive.block_s))
    assert read(meter, drive, [SSD.name] * 4) == 0
    assert read(meter, drive, [SSD.name] * 4 + [RAM.name] * 8) == 12
    assert read(meter, drive, [RAM.name] * 8 + [SSD.name] * 4) == 8


def test_what_was_known_already_counts_for_a_prompts_time() -> None:
    meter = RestoreMeter()
    for start, n in ((0, 500), (500, 500), (1000, 200), (0, 200)):
        meter.computed(start, n, 0.001 * n + 1e-6 * ((start + n) ** 2 - start**2))
    assert meter._prefill is not None
    assert meter._prefill.prefill(1000, 100) == pytest.approx(0.1 + 1e-6 * (1100**2 - 1000**2))


def test_what_every_prompt_costs_besides_is_no_part_of_a_token() -> None:
    meter = RestoreMeter()
    for n in (10, 20, 12, 400, 15):
        meter.computed(1000, n, 0.05 + 0.001 * n)
    assert meter._prefill is not None and meter._prefill.prefill(0, 100) == pytest.approx(0.1, rel=0.02)


def test_two_prompts_say_nothing_of_attention() -> None:
    meter = RestoreMeter()
    for n, seconds in ((64, 0.07), (256, 0.30)):  # the second one was disturbed
        meter.computed(0, n, seconds)
    assert meter._prefill is not None and meter._prefill.prefill(0, 4096) < 1.3 * 4096 * 0.30 / 256


def test_no_request_reads_longer_than_computing_takes_but_for_one_block() -> None:
    for block_s in (0.001, 0.01, 0.015, 0.017, 0.05, 1.0):
        meter, drive = learnt(), Drive(block_s)
        for _ in range(4):
            started = drive.now
            done = read(meter, drive, 30)
            wait = drive.now - started + 0.001 * BLOCK * (30 - done)
            assert wait <= 0.001 * BLOCK * 30 + block_s + 1e-9
