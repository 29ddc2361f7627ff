"""A put never loses a block of its own chain for another one, whatever replacement decides."""

from __future__ import annotations

import pytest

from kvlab.store.replacement import REPLACEMENTS
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
