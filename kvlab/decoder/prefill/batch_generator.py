"""Rounds of mlx-lm's BatchGenerator in which prompts get some layers further while others decode."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from kvlab.backends.device import is_cpu
from kvlab.caches.layerwise import LayerwiseModel
from kvlab.decoder.prefill.chunked import ChunkedPrefill

Responses = tuple[list[Any], list[Any]]


class ChunkedBatchGenerator(BatchGenerator):
    """Prompts join, and turn to decoding, between two chunks; a chunk may take several rounds.

    Args:
        stages: see :class:`ChunkedPrefill`.
        options: BatchGenerator's.
    """

    def __init__(self, model: Any, stages: LayerwiseModel | None, **options: Any) -> None:
        super().__init__(model, **options)
        self.prefill = ChunkedPrefill.empty(model, self.sampler, self.prefill_step_size)
        self.prefill.stages, self.prefill.stream = stages, self.stream
        self._prompt_batch = self.prefill
        self._begun: list[Any] = []

    def first_token(self, uid: int | None) -> int:
        """The token that a sequence just turned to decoding begins with: it is reported only a round later."""
        batch = self._generation_batch
        return int(batch._next_tokens[batch.uids.index(uid)].item())

    def next(self) -> Responses:
        """How far prompts got, said once they have, and what was generated."""
        if is_cpu():  # products of prompts run on a core of their own
            self.prefill.stream = mx.default_stream(mx.default_device())
        return super().next()

    def close(self) -> None:
        """As mlx-lm's; a chunk that is under way is left."""
        self.prefill.stop()
        super().close()

    def _next(self) -> Responses:
        turned: list[Any] = []
        if self.prefill.is_under_way:
            generated = self._generation_batch.next() if len(self._generation_batch) else []
            self.prefill.go_on()
        else:
            prompts, generated = super()._next()
            turned = [one for one in prompts if one.end_of_prompt]
            self._begun = [one for one in prompts if not one.end_of_prompt]
        if self.prefill.is_under_way:
            return turned, generated
        here = set(self.prefill.uids)
        through, self._begun = [one for one in self._begun if one.uid in here], []
        return turned + through, generated
