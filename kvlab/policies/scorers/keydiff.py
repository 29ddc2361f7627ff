"""``KeyDiff``: keep the rows whose keys differ most from the mean direction of all keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.policies.scorers.base import ScoreContext, Scorer

MIN_NORM = 1e-12
"""Smallest norm that a key is divided by, so that a key of zeros has a direction of zeros."""


@dataclass(frozen=True)
class KeyDiff(Scorer):
    """Rows whose keys point away from the mean direction of all keys stay. Needs no queries.

    Follows Park et al. 2025. The score is minus the cosine between a key and the anchor, the mean over the rows of the
    unit keys. No row stays for its place: neither first nor latest rows are protected. Deviation: while decoding, the
    anchor is the mean over the rows that are still held.
    """

    name: ClassVar[str] = "keydiff"
    paper: ClassVar[str] = "KeyDiff, arXiv:2504.15364"

    def score(self, context: ScoreContext) -> mx.array:
        keys = context.keys.astype(mx.float32)
        units = keys / mx.maximum(mx.linalg.norm(keys, axis=-1, keepdims=True), MIN_NORM)
        # The sum has the direction of the mean; rows that only fill a head add nothing to it.
        anchor = (units * (context.positions >= 0)[..., None]).sum(axis=2, keepdims=True)
        anchor = anchor / mx.maximum(mx.linalg.norm(anchor, axis=-1, keepdims=True), MIN_NORM)
        return -(units * anchor).sum(axis=-1)
