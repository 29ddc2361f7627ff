"""Chunks of prompts in the forward pass of a decode step: every weight is read once for both.

Chunked prefill that rides along with decoding is Sarathi-Serve's (Agrawal et al. 2024, arXiv:2403.02310). Here each
prompt token is a row of the batch with a position of its own; only the attention tells rows that decode from rows of a
prompt, which belong together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.batch import BatchLayerCache


class JointLayer:
    """One layer's caches in such a pass: rows ``[batch + n, ...]``, those that decode first.

    Attributes:
        offset: true positions of all rows, int32 ``[batch + n]``.
    """

    def __init__(self, decoding: BatchLayerCache, prompts: Sequence[tuple[Any, int]], offset: mx.array) -> None:
        self.offset = offset
        self._decoding = decoding
        self._batch = len(decoding.sequences)
        self._prompts = prompts

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> None:
        """Every row is one query; :meth:`attend` knows what it may see."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give each sequence its rows of ``[batch + n, n_kv_heads, 1, head_dim]``."""
        self._decoding.update_and_fetch(keys[: self._batch], values[: self._batch])
        at = self._batch
        for sequence, count in self._prompts:
            sequence.update_and_fetch(*(_turned(side[at : at + count]) for side in (keys, values)))
            at += count
        return keys, values

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Attention ``[batch + n, n_heads, 1, v_head_dim]``."""
        outs = [self._decoding.attend(queries[: self._batch], scale=scale, mask=mask, sinks=sinks)]
        at = self._batch
        for sequence, count in self._prompts:
            mine = _turned(queries[at : at + count])
            # One core's prompt is another's decoding.
            out = sequence.attend(mine, scale=scale, sinks=sinks, meanwhile=functools.partial(mx.async_eval, outs[0]))
            outs.append(_turned(out))
            at += count
        return mx.concatenate(outs)


def joint_logits(
    model: nn.Module,
    inputs: mx.array,
    caches: Sequence[BatchLayerCache],
    chunks: Sequence[Sequence[int]],
    prompts: Sequence[BatchLayerCache],
) -> mx.array:
    """Logits ``[batch, 1, vocabulary]`` of a decode step, computed with chunks of prompts beside it.

    Args:
        inputs: the step's tokens ``[batch, 1]``; caches: theirs, one a layer.
        chunks: new tokens of each prompt; prompts: their caches, one a layer.
    """
    counts = [len(chunk) for chunk in chunks]
    starts = [sequence.offset for sequence in prompts[0].sequences]
    positions = [at for start, count in zip(starts, counts, strict=True) for at in range(start, start + count)]
    offset = mx.concatenate([caches[0].offset, mx.array(positions)])
    layers = [
        JointLayer(cache, list(zip(prompt.sequences, counts, strict=True)), offset)
        for cache, prompt in zip(caches, prompts, strict=True)
    ]
    rows = mx.concatenate([inputs, mx.array([token for chunk in chunks for token in chunk], inputs.dtype)[:, None]])
    return model(rows, cache=layers)[: len(inputs)]


def _turned(rows: mx.array) -> mx.array:
    """From tokens as rows of a batch, ``[n, heads, 1, width]``, to tokens of a sequence, ``[1, heads, n, width]``."""
    return rows.swapaxes(0, 2)
