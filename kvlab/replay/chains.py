"""Give the blocks of chains dense numbers, such that a block has one parent."""

from __future__ import annotations

import numpy as np

ROOT = -1
"""The parent of every first block."""
SPARSE = 4
"""Ids up to so many times their number are looked up in a table; others are sorted."""


def numbered_chains(ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the blocks of chains as int32 numbers from 0 on, in the order of their first appearance.

    Where ids are hashes over all that precedes, equal ids become equal numbers. Where one id follows several parents
    it names the content of a block alone: then each of its chains gets a number of its own, as a chained hash would.

    Args:
        ids: integers ``[blocks]``, the chains of all requests behind one another.
        offsets: int64 ``[requests + 1]``, where each chain starts.
    """
    numbers = _first_seen(ids)
    parents = parents_of_places(numbers, offsets)
    one = np.empty(int(numbers.max(initial=-1)) + 1, np.int32)
    one[numbers] = parents
    if np.array_equal(one[numbers], parents):
        return numbers
    return _first_seen(_chained(numbers, offsets))


def parents_of_places(numbers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return for every place of a chain the number before it, int32 ``[blocks]``; ``ROOT`` for the first."""
    parents = np.empty(len(numbers), np.int32)
    parents[1:] = numbers[:-1]
    starts = offsets[:-1]
    parents[starts[starts < offsets[1:]]] = ROOT
    return parents


def _first_seen(ids: np.ndarray) -> np.ndarray:
    """Number values from 0 on in the order of their first appearance."""
    if len(ids) and ids.min() >= 0 and ids.max() < SPARSE * len(ids):
        places = np.full(int(ids.max()) + 1, len(ids), np.int32)
        places[ids[::-1]] = np.arange(len(ids) - 1, -1, -1, dtype=np.int32)  # of equal ids the last assignment counts
        used = np.flatnonzero(places < len(ids))
        lookup = np.empty(len(places), np.int32)
        lookup[used[np.argsort(places[used])]] = np.arange(len(used), dtype=np.int32)
        return lookup[ids]
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    return rank[inverse]


def _chained(numbers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Number pairs of parent and id, depth by depth."""
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    starts, sorted_lengths = offsets[:-1][longest_first], lengths[longest_first]
    made = np.empty(len(numbers), np.int64)
    parent = np.zeros(len(starts), np.int64)
    used, width = 1, int(numbers.max(initial=0)) + 1
    for depth in range(int(sorted_lengths[0]) if len(sorted_lengths) else 0):
        active = int(np.searchsorted(-sorted_lengths, -depth, side="left"))
        at = starts[:active] + depth
        _, inverse = np.unique(parent[:active] * width + numbers[at], return_inverse=True)
        parent = inverse.astype(np.int64) + used
        made[at] = parent
        used += int(inverse.max()) + 1
    return made
