"""Reading or computing: what a decoder learns of its prompts and its drive, and when a read ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kvlab.decoder.reuse.restore_meter import PATIENCE, ComputedSooner, RestoreMeter
from kvlab.store.read_buffers import ArraySpec

BLOCK, BLOCK_BYTES = 16, 16 * 1000
ARRAYS = [ArraySpec("kv", np.dtype(np.uint8), (1, BLOCK, 1000), 0)]


class Drive:
    """A clock, and a sink; reading a block takes ``block_s``."""

    def __init__(self, block_s: float) -> None:
        self.now, self.block_s, self.read = 0.0, block_s, 0

    def __call__(self) -> float:
        return self.now

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview] | None:
        self.read += 1
        self.now += self.block_s
        return None

    def take(self, payload: Any, at: int) -> None: ...


def learnt(token_s: float = 0.001, token2_s: float = 0.0) -> RestoreMeter:
    meter = RestoreMeter()
    for n in (200, 400, 800):
        meter.computed(0, n, token_s * n + token2_s * n * n)
    return meter


def read(meter: RestoreMeter, drive: Drive, blocks: int, start: int = 0) -> int:
    """Read the blocks of a match; return how many were read."""
    before = drive.read
    sink = meter.watched(drive, blocks * BLOCK, drive)
    try:
        for block in range(start, blocks):
            sink.targets(ARRAYS, block * BLOCK)
        sink.finish()
    except ComputedSooner:
        pass
    return drive.read - before


def test_a_quick_drive_is_read_to_the_end() -> None:
    assert read(learnt(), Drive(0.001), 40) == 40


def test_a_slow_drive_costs_one_block_and_later_requests_nothing() -> None:
    meter, drive = learnt(), Drive(0.1)
    assert [read(meter, drive, 40) for _ in range(3)] == [1, 0, 0]


def test_a_drive_that_became_quicker_is_read_again_after_a_while() -> None:
    meter, slow, quick = learnt(), Drive(0.1), Drive(0.001)
    read(meter, slow, 40)
    assert [read(meter, quick, 40) for _ in range(PATIENCE)] == [0] * (PATIENCE - 1) + [40]


def test_nothing_is_refused_before_a_prompt_was_computed() -> None:
    assert read(RestoreMeter(), Drive(9.0), 5) == 5


def test_long_prompts_are_read_from_a_drive_that_is_too_slow_for_short_ones() -> None:
    meter, drive = learnt(0.001, 1e-6), Drive(BLOCK * 0.0015)
    assert read(meter, drive, 10) == 1
    assert read(meter, drive, 100) == 100


def test_what_was_known_already_counts_for_a_prompts_time() -> None:
    meter = RestoreMeter()
    for start, n in ((0, 500), (500, 500), (1000, 200)):
        meter.computed(start, n, 0.001 * n + 1e-6 * ((start + n) ** 2 - start**2))
    assert meter.is_worth_reading(1000, 100, 1) and meter._speed is not None
    assert meter._speed.prefill(1000, 100) == pytest.approx(0.1 + 1e-6 * (1100**2 - 1000**2))


def test_what_every_prompt_costs_besides_is_no_part_of_a_token() -> None:
    meter = RestoreMeter()
    for n in (10, 20, 12, 400, 15):
        meter.computed(1000, n, 0.05 + 0.001 * n)
    assert meter._speed is not None and meter._speed.prefill(0, 100) == pytest.approx(0.1, rel=0.02)


def test_no_request_reads_longer_than_computing_takes_but_for_one_block() -> None:
    for block_s in (0.001, 0.01, 0.015, 0.017, 0.05, 1.0):
        meter, drive = learnt(), Drive(block_s)
        for _ in range(4):
            started = drive.now
            done = read(meter, drive, 30)
            wait = drive.now - started + 0.001 * BLOCK * (30 - done)
            assert wait <= 0.001 * BLOCK * 30 + block_s + 1e-9


def test_blocks_of_ram_between_are_handed_on_and_not_timed() -> None:
    meter, drive = learnt(), Drive(0.001)
    sink = meter.watched(drive, 100, drive)
    sink.targets(ARRAYS, 0)
    sink.take({}, BLOCK)
    drive.now += 99.0
    sink.targets(ARRAYS, 2 * BLOCK)
    assert drive.read == 2
