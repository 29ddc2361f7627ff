"""``Random``: keep rows at random, the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.policies.scorers.base import ScoreContext, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Rows stay at random, drawn anew per layer and head.

    The score of a row depends on the seed, the layer, the head and its position only, so that it is the same at each
    eviction, and the same in a batch and alone.

    Args:
        seed: another seed gives other scores.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"
    seed: int = 0

    def score(self, context: ScoreContext) -> mx.array:
        _, heads, _, _ = context.keys.shape
        x = context.positions.astype(mx.uint32) * mx.array(0x9E3779B1, mx.uint32)
        head = mx.arange(heads, dtype=mx.uint32)[None, :, None]
        draw = mx.array((self.seed * 7919 + context.layer) & 0xFFFFFFFF, mx.uint32)
        x = x ^ (head * mx.array(0x85EBCA77, mx.uint32) + draw)
        # The finalizer of MurmurHash3 makes pseudo-random bits of a counter.
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * mx.array(factor, mx.uint32)
        return (x ^ (x >> 16)).astype(mx.float32)
