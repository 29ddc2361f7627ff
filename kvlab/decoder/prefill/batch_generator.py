"""Rounds of mlx-lm's BatchGenerator in which prompts get some layers further while others decode."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from kvlab.backends import Backend
from kvlab.backends.wired_limit import WIRED_LIMIT
from kvlab.caches.layerwise import LayerwiseModel
from kvlab.decoder.prefill.chunked import ChunkedPrefill

Responses = tuple[list[Any], list[Any]]

MAX_FREED_BYTES = 1 << 30
"""Bytes of freed buffers that MLX keeps for arrays to come. mlx-lm gives all back after each chunk of prompt, and fresh
pages then cost a short chunk more than its arithmetic; kept without a limit, buffers of lengths that will not come
again fill the memory."""


class ChunkedBatchGenerator(BatchGenerator):
    """Prompts join, and turn to decoding, between two chunks; a chunk may take several rounds.

    Args:
        backend: decides on streams, and where a chunk can be left.
        stages: see :class:`ChunkedPrefill`.
        options: BatchGenerator's.
    """

    def __init__(self, model: Any, backend: Backend, stages: LayerwiseModel | None, **options: Any) -> None:
        super().__init__(model, **options)
        before: int | None = self.__dict__.pop("_old_wired_limit")
        self._old_wired_limit = None  # mlx-lm would set it back under other generators
        self._holds_wired_limit = before is not None
        if before is not None:
            WIRED_LIMIT.hold(before)
        self._backend = backend
        self.prefill = ChunkedPrefill.empty(model, self.sampler, self.prefill_step_size)
        self.prefill.backend, self.prefill.stages, self.prefill.stream = backend, stages, self.stream
        self._prompt_batch = self.prefill
        self._begun: list[Any] = []

    def first_token(self, uid: int | None) -> int:
        """The token that a sequence just turned to decoding begins with: it is reported only a round later."""
        batch = self._generation_batch
        return int(batch._next_tokens[batch.uids.index(uid)].item())

    def next(self) -> Responses:
        """How far prompts got, said once they have, and what was generated."""
        self.prefill.stream = self._backend.prefill_stream(self.stream)
        responses = super().next()
        if mx.get_cache_memory() > MAX_FREED_BYTES:
            mx.clear_cache()
        return responses

    def close(self) -> None:
        """As mlx-lm's; a chunk that is under way is left."""
        self.prefill.stop()
        if self._holds_wired_limit:
            self._holds_wired_limit = False
            mx.synchronize(self.stream)
            WIRED_LIMIT.release()
        super().close()

    def _sort(self) -> None:
        """Bring the decoding batch into the order in which its rows stand, so that no step has to gather them."""
        batch = self._generation_batch
        order = getattr(batch.prompt_cache[0], "order", None) if len(batch) > 1 else None
        if order is not None:
            batch.filter(order)

    def _next(self) -> Responses:
        self._sort()
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
