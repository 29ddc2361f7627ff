"""``AdaKV``: share a budget out among the heads of a layer, by the scores of another scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.sepllm import SepLLM
from kvlab.policies.scorers.tova import TOVA
from kvlab.policies.scorers.wrapping import WrappingScorer

SAME_IN_ALL_HEADS = (TOVA, SepLLM)
"""Scorers that give every head of a layer the same scores."""


@dataclass(frozen=True)
class AdaKV(WrappingScorer):
    """The best rows of all heads of a layer together stay, by another scorer's scores: some heads keep more of them.

    Follows Feng et al. 2024: the budget of a layer goes to the rows with the best scores, whichever head they are of.
    The safeguard is that of kvpress: the best rows of each head, ``alpha`` times the budget, stay before heads are
    compared (the paper's safeguard mixes the heads' shares with equal ones). On average a head keeps the budget; a head
    with fewer rows than the longest is filled up to its length.

    ``adakv(snapkv:budget=0.3)`` means ``adakv(snapkv):budget=0.3``: budget and interval are those of the wrapper, and
    may be written in either place.

    Args:
        scorer: the scorer whose scores are compared between heads.
        alpha: share of the budget that each head keeps in any case, from 0 to 1; 1 is the scorer alone.
    """

    name: ClassVar[str] = "adakv"
    paper: ClassVar[str] = "Ada-KV, arXiv:2407.11550"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.scorer, AdaKV):
            raise PolicyError(f"adakv: '{self.scorer}' shares out a budget already: write {self.scorer} alone")
        if isinstance(self.scorer, SAME_IN_ALL_HEADS):
            raise PolicyError(f"adakv: '{self.scorer.name}' scores all heads alike: use {self.scorer} without adakv")
        if not 0 <= self.alpha <= 1:
            raise PolicyError(f"adakv: alpha={self.alpha} is no share; write 0 to 1, such as alpha=0.2")
        super().__post_init__()

    def targets(self, scores: mx.array, rows: int) -> Sequence[int]:
        return shared_among_heads(scores, rows, min(max(1, int(self.alpha * rows)), rows))


def shared_among_heads(scores: mx.array, rows: int, own: int) -> list[int]:
    """Return how many rows each head keeps where the best of all heads stay, ``rows`` a head on average.

    ``scores`` are ``[1, n_kv_heads, length]``; the best ``own`` rows of each head stay in any case.
    """
    values = np.array(scores[0].astype(mx.float32))
    heads = len(values)
    # The own rows of a head rank above all others; each is counted in it once.
    best = np.argpartition(-values, own - 1, axis=1)[:, :own]
    np.put_along_axis(values, best, np.inf, axis=1)
    # From the newest row back and head by head, so that rows with equal scores are shared out evenly.
    order = np.argsort(-values[:, ::-1].T, axis=None, kind="stable")[: heads * rows]
    return [int(count) for count in np.bincount(order % heads, minlength=heads)]
