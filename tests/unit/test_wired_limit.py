"""Metal's wired limit is one for the process: a generator that closes does not take it from the others."""

import sys
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from kvlab.backends import current
from kvlab.backends.wired_limit import WiredLimit
from kvlab.decoder.prefill import batch_generator
from kvlab.decoder.prefill.batch_generator import MAX_FREED_BYTES, ChunkedBatchGenerator


def test_the_limit_of_before_comes_back_with_the_last_holder() -> None:
    set_to: list[int] = []
    limit = WiredLimit(set_to.append)
    limit.hold(7)
    limit.hold(100)  # what the first generator raised it to
    limit.release()
    assert set_to == []
    limit.release()
    assert set_to == [7]


def test_a_generator_that_closes_leaves_the_limit_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [7]

    def raised() -> int:
        before, now[0] = now[0], 100
        return before

    monkeypatch.setattr(sys.modules["mlx_lm.generate"], "maybe_set_recommended_wired_limit", raised)
    monkeypatch.setattr(mx, "set_wired_limit", lambda size: now.__setitem__(0, size))
    monkeypatch.setattr(batch_generator, "WIRED_LIMIT", WiredLimit(lambda size: now.__setitem__(0, size)))
    first, second = (ChunkedBatchGenerator(nn.Linear(2, 2), current(), None) for _ in range(2))
    first.close()
    first.close()
    assert now == [100]
    second.close()
    assert now == [7]


def test_freed_buffers_are_given_back_beyond_a_limit_whatever_a_round_did(monkeypatch: pytest.MonkeyPatch) -> None:
    held, cleared = [0], []
    fake: Any = SimpleNamespace(get_cache_memory=lambda: held[0], clear_cache=lambda: cleared.append(held[0]))
    generator = ChunkedBatchGenerator(nn.Linear(2, 2), current(), None)
    monkeypatch.setattr(batch_generator, "mx", fake)
    for size in (0, MAX_FREED_BYTES, MAX_FREED_BYTES + 1):
        held[0] = size
        generator.next()
    assert cleared == [MAX_FREED_BYTES + 1]
    monkeypatch.undo()
    generator.close()
