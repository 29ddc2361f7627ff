"""``ChunkedBatchGenerator``: mlx-lm's BatchGenerator, in which each round also computes some layers of prompts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch

from kvlab.backends import Backend
from kvlab.backends.wired_limit import WIRED_LIMIT
from kvlab.caches.layerwise import LayerwiseModel
from kvlab.decoder.prefill.chunked import ChunkedPrefill

Responses = tuple[list[Any], list[Any]]

MAX_FREED_BYTES = 1 << 30
"""Bytes of freed buffers that MLX keeps for later arrays.

mlx-lm frees all of them after each chunk of prompt; new pages then cost a short chunk more time than its arithmetic.
Kept without a limit, buffers of sizes that are not used again would fill the memory.
"""


class ChunkedBatchGenerator(BatchGenerator):
    """Generates tokens while prompts are prefilled; a chunk may take several rounds.

    Prompts join, and begin to decode, between two chunks.

    Args:
        backend: chooses streams, and decides where a chunk can be interrupted.
        layerwise: see :class:`ChunkedPrefill`.
        prompts_first: sequences decode only while there is no prompt to compute.
        one_stream: prompts are computed on the stream of decoding, whatever the backend prefers.
        options: BatchGenerator's.
    """

    _generation_batch: Any

    def __init__(
        self,
        model: Any,
        backend: Backend,
        layerwise: LayerwiseModel | None,
        *,
        prompts_first: bool = False,
        one_stream: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        before: int | None = self.__dict__.pop("_old_wired_limit")
        self._old_wired_limit = None  # mlx-lm would set it back under other generators
        self._holds_wired_limit = before is not None
        if before is not None:
            WIRED_LIMIT.hold(before)
        self._backend = backend
        self.prefill = ChunkedPrefill.empty(model, self.sampler, self.prefill_step_size)
        self.prefill.backend, self.prefill.layerwise, self.prefill.stream = backend, layerwise, self.stream
        self._prompt_batch = self.prefill
        self._begun: list[Any] = []
        self._one_stream = one_stream
        self._prompts_first = prompts_first

    def first_token(self, uid: int | None) -> int:
        """Return the first token of a sequence that has just begun to decode; mlx-lm reports it a round later."""
        batch = self._generation_batch
        return int(batch._next_tokens[batch.uids.index(uid)].item())

    @property
    def prefill_stream(self) -> Any:
        """The stream for prompts, and for all other work except decoding. Read it on the thread that computes."""
        return self.stream if self._one_stream else self._backend.prefill_stream(self.stream)

    def next(self) -> Responses:
        """Run a round; return the progress of prompts, and the generated tokens.

        Progress is reported once a chunk has gone through all layers.
        """
        self.prefill.stream = self.prefill_stream
        responses = super().next()
        if mx.get_cache_memory() > MAX_FREED_BYTES:
            mx.clear_cache()
        return responses

    def close(self) -> None:
        """Close as mlx-lm does, and give up a chunk that is under way."""
        self.prefill.stop()
        if self._holds_wired_limit:
            self._holds_wired_limit = False
            mx.synchronize(self.stream)
            WIRED_LIMIT.release()
        super().close()

    def _sort(self) -> None:
        """Sort the decoding batch into the order of its length buckets, so that steps need not gather rows."""
        batch = self._generation_batch
        order = getattr(batch.prompt_cache[0], "order", None) if len(batch) > 1 else None
        if order is not None:
            batch.filter(order)

    @property
    def _decoding_waits(self) -> bool:
        return self._prompts_first and bool(self._currently_processing or self._unprocessed_sequences)

    def _next_prompts(self) -> Responses:
        """Run a round in which only prompts are computed; those that are complete begin to decode in the next one."""
        decoding, self._generation_batch = self._generation_batch, GenerationBatch.empty(self.model, self.sampler)
        try:
            return super()._next()
        finally:
            decoding.extend(self._generation_batch)
            self._generation_batch = decoding

    def _next(self) -> Responses:
        self._sort()
        ended: list[Any] = []
        if self.prefill.is_under_way:
            generated = self._generation_batch.next() if len(self._generation_batch) else []
            self.prefill.advance()
        else:
            prompts, generated = self._next_prompts() if self._decoding_waits else super()._next()
            ended = [one for one in prompts if one.end_of_prompt]
            self._begun = [one for one in prompts if not one.end_of_prompt]
        if self.prefill.is_under_way:
            return ended, generated
        present = set(self.prefill.uids)
        computed, self._begun = [one for one in self._begun if one.uid in present], []
        return ended + computed, generated
