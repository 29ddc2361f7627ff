"""Prefill that keeps the device busy: beside decoding sequences, chunks of prompts ride along with the next step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.generate import PromptProcessingBatch, _right_pad_prompts

from kvlab.caches.joint import joint_logits

SPARE = 1 << 30
"""Bytes of freed buffers kept for the next chunk. mlx-lm gives all back after each, and fresh pages then cost a short
chunk more than its arithmetic."""

Chunks = list[list[int]]


class Prefill(PromptProcessingBatch):
    """mlx-lm's prompt batch, which returns before the device is through with a chunk; at most two are on their way.

    Attributes:
        rides: whether chunks wait for the next decode step, to be computed in its forward pass (:class:`Joint`). Set
            it only where every layer is a :class:`kvlab.caches.LayerCache` that keeps all its rows.
    """

    rides = False
    _mark: Any = None
    _waiting: Chunks | None = None

    def prompt(self, tokens: Chunks) -> None:
        """Take a chunk of every prompt."""
        if len(self.uids) != len(tokens):
            raise ValueError("The batch length doesn't match the number of inputs")
        self.compute()
        if not tokens:
            return
        for known, new in zip(self.tokens, tokens, strict=True):
            known += new
        self._waiting = tokens
        if not self.rides:
            self.compute()

    def take(self) -> Chunks | None:
        """The chunks that wait, for whoever computes them instead of this batch."""
        chunks, self._waiting = self._waiting, None
        return chunks

    def compute(self) -> None:
        """Compute the chunks that wait, if any, in a forward pass of their own."""
        chunks = self.take()
        if chunks is None:
            return
        lengths = [len(chunk) for chunk in chunks]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            inputs = _right_pad_prompts(chunks, max_length=longest)
            for cache in self.prompt_cache:
                cache.prepare(lengths=lengths, right_padding=padding)
        else:
            inputs = mx.array(chunks)
        self.model(inputs, cache=self.prompt_cache)
        if max(padding):
            for cache in self.prompt_cache:
                cache.finalize()
        self.set_off()

    def set_off(self) -> None:
        """Have the device compute what the caches hold by now, and wait until it is through with the chunk before."""
        state: Any = [cache.state for cache in self.prompt_cache]
        leaves: Any = tree_flatten(state)
        arrays = [array for _, array in leaves if isinstance(array, mx.array) and array.size]
        last = max(arrays[::-1], key=lambda array: array.ndim > 1, default=None)  # positions are known beforehand
        # A number of its own: holding a row itself would make the next chunk copy all of them.
        mark = None if last is None else last[(..., *[slice(-1, None)] * min(2, last.ndim))].sum()
        before, self._mark = self._mark, mark
        mx.async_eval(state, mark)
        mx.eval(before)
        if mx.get_cache_memory() > SPARE:
            mx.clear_cache()

    def extract_cache(self, idx: int) -> list[Any]:
        self.compute()
        return super().extract_cache(idx)

    def extend(self, batch: PromptProcessingBatch) -> None:
        self.compute()
        super().extend(batch)

    def split(self, indices: list[int]) -> PromptProcessingBatch:
        self.compute()
        return super().split(indices)

    def filter(self, keep: list[int]) -> None:
        self.compute()
        super().filter(keep)


class Joint:
    """A model for mlx-lm's BatchGenerator: its decode steps take the waiting chunks of ``prefill`` along."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = model.layers
        self.prefill: Prefill | None = None

    def __call__(self, inputs: mx.array, cache: Sequence[Any]) -> mx.array:
        """Logits ``[batch, n, vocabulary]``."""
        prefill = self.prefill
        chunks = prefill.take() if prefill is not None and inputs.shape[1] == 1 else None
        if prefill is None or chunks is None:
            return self.model(inputs, cache=cache)
        logits = joint_logits(self.model, inputs, cache, chunks, prefill.prompt_cache)
        prefill.set_off()
        return logits
