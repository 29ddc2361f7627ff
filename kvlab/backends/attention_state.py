"""``AttentionState``: attention of queries over some rows, which can be merged with that over other rows.

Attention over rows ``A + B`` is exact when each part has its output, its largest score and its sum of exponentials
(log-sum-exp merging): the recurrence of online softmax (Milakov and Gimelshein 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class AttentionState:
    """The attention of single queries over some rows, before normalization, in float32.

    Attributes:
        out: sums of values, weighted by ``exp(score - max_score)``, ``[batch, n_heads, v_head_dim]``.
        max_score: the largest score, ``[batch, n_heads, 1]``.
        sum_exp: sum of ``exp(score - max_score)``, ``[batch, n_heads, 1]``. It is kept beside the maximum: their
            logarithm, rounded to float32, would cost some bits of every weight.
    """

    out: mx.array
    max_score: mx.array
    sum_exp: mx.array

    def take(self, index: mx.array) -> AttentionState:
        """Return the states of the sequences ``index``."""
        return AttentionState(self.out[index], self.max_score[index], self.sum_exp[index])

    def spread(self, index: mx.array) -> AttentionState:
        """Return the states for a batch: entry i is state ``index[i]``, or an empty one where that is the length."""
        blank = AttentionState(
            mx.zeros((1, *self.out.shape[1:])),
            mx.full((1, *self.max_score.shape[1:]), -mx.inf),
            mx.zeros((1, *self.sum_exp.shape[1:])),
        )
        return concatenate([self, blank]).take(index)


def concatenate(states: list[AttentionState]) -> AttentionState:
    """Concatenate the states of several groups of sequences."""
    if len(states) == 1:
        return states[0]
    return AttentionState(
        mx.concatenate([state.out for state in states]),
        mx.concatenate([state.max_score for state in states]),
        mx.concatenate([state.sum_exp for state in states]),
    )


def merged(
    out: mx.array, max_score: mx.array, sum_exp: mx.array, out2: mx.array, max_score2: mx.array, sum_exp2: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Merge two states of the same queries over different rows: takes the fields of both, returns those of one."""
    top = mx.maximum(max_score, max_score2)
    mine, theirs = mx.exp(max_score - top), mx.exp(max_score2 - top)
    return out * mine + out2 * theirs, top, sum_exp * mine + sum_exp2 * theirs
