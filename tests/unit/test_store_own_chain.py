"""What a put asks of a replacement policy: no block of its own chain is lost, and what has expired leaves first."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from kvlab.store.replacement import REPLACEMENTS
from kvlab.store.replacement.arc import Arc
from kvlab.store.replacement.base import Evictable, any_key
from kvlab.store.replacement.ttl import Ttl
from tests.store_kit import BLOCK, fetch, opened, put, rows

BLOCK_BYTES = sum(array.nbytes for array in rows(list(range(BLOCK)), 0, BLOCK).values())


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_new_blocks_push_out_others_and_not_their_own_parents(name: str) -> None:
    with opened(None, ram=6 * BLOCK_BYTES, replace=name) as store:
        old, new = [[talk, *range(1, 4 * BLOCK)] for talk in (100, 200)]
        put(store, old[: 3 * BLOCK])
        for _ in range(3):
            assert fetch(store, old[: 3 * BLOCK]).tokens == 3 * BLOCK  # used often, so that lfu keeps them rather
        put(store, new)
        assert fetch(store, new).tokens == 4 * BLOCK


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_chain_longer_than_the_tier_keeps_its_beginning(name: str) -> None:
    with opened(None, ram=3 * BLOCK_BYTES, replace=name) as store:
        put(store, list(range(5 * BLOCK)))
        assert fetch(store, list(range(5 * BLOCK))).tokens == 3 * BLOCK


def test_blocks_whose_time_is_over_leave_before_new_ones_enter() -> None:
    now = [0.0]
    with opened(None, ram=10 * BLOCK_BYTES, replace="ttl") as store:
        store._ram._order = Ttl(10 * BLOCK_BYTES, lifetime=60, clock=lambda: now[0])
        put(store, list(range(2 * BLOCK)))
        now[0] = 61
        put(store, list(range(100, 100 + BLOCK)))
        assert fetch(store, list(range(2 * BLOCK))).tokens == 0
        assert store._ram.held == BLOCK_BYTES


def test_replacement_hears_of_new_blocks_before_space_is_made_for_them() -> None:
    calls: list[tuple[str, bool]] = []

    class Heard(Arc):
        def expect(self, key: Hashable, size: int = 1) -> None:
            calls.append(("expect", key in self))
            super().expect(key, size)

        def victim(self, evictable: Evictable = any_key) -> Hashable | None:
            calls.append(("victim", len(self) > 0))
            return super().victim(evictable)

    with opened(None, ram=BLOCK_BYTES) as store:
        store._ram._order = Heard(BLOCK_BYTES)
        for first in (0, 100):
            put(store, list(range(first, first + BLOCK)))
    assert calls == [("expect", False), ("expect", False), ("victim", True)]
