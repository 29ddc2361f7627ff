"""Prefill in chunks without a stop between them: mlx-lm's prompt batch, with the device kept busy."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import PromptProcessingBatch, _right_pad_prompts

SPARE = 1 << 30
"""Bytes of freed buffers kept for the next chunk. mlx-lm gives them all back after each; fresh pages cost a chunk beside
decoding sequences more than its arithmetic."""


class Prefill(PromptProcessingBatch):
    """A prompt batch that sets a chunk off and returns once the one before is through.

    So the next forward pass is prepared while the device computes, and no more than two chunks are ever on their way.
    """

    _mark: Any = None

    def prompt(self, tokens: list[list[int]]) -> None:
        """Compute a chunk of every prompt, one forward pass for all."""
        if len(self.uids) != len(tokens):
            raise ValueError("The batch length doesn't match the number of inputs")
        if not tokens:
            return
        for known, new in zip(self.tokens, tokens, strict=True):
            known += new
        lengths = [len(new) for new in tokens]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            inputs = _right_pad_prompts(tokens, max_length=longest)
            for cache in self.prompt_cache:
                cache.prepare(lengths=lengths, right_padding=padding)
        else:
            inputs = mx.array(tokens)
        self.model(inputs, cache=self.prompt_cache)
        if max(padding):
            for cache in self.prompt_cache:
                cache.finalize()
        self._set_off([cache.state for cache in self.prompt_cache])

    def _set_off(self, state: Any) -> None:
        leaves: Any = tree_flatten(state)
        arrays = [array for _, array in leaves if isinstance(array, mx.array) and array.size]
        # A number of its own: holding a row itself would make the next chunk copy all of them.
        before, self._mark = self._mark, [array[..., -1:, -1:].sum() for array in arrays[-1:]]
        mx.async_eval(state, self._mark)
        mx.eval(before)
        if mx.get_cache_memory() > SPARE:
            mx.clear_cache()
