"""Prefill that freezes nobody: beside decoding sequences a chunk of prompt gets a little further a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import PromptProcessingBatch, _right_pad_prompts

from kvlab.backends import Backend
from kvlab.caches import BatchLayerCache
from kvlab.caches.layerwise import LayerwiseModel

Chunks = list[list[int]]
SetOff = Callable[[mx.array | None, list[mx.array]], None]


class PrefillPass:
    """A chunk of every prompt on its way through the layers.

    Args:
        backend: decides where the work can be left.
        caches: the prompts' batches, one a layer.
        set_off: has the device compute arrays, the first of which is wanted for itself.
        wait_s: how long it is expected to wait for what goes into attention.

    Attributes:
        done: tokens times layers that were set off.
    """

    def __init__(
        self,
        backend: Backend,
        stages: LayerwiseModel,
        chunks: Chunks,
        caches: Sequence[BatchLayerCache],
        set_off: SetOff,
        wait_s: float,
    ) -> None:
        lengths = [len(chunk) for chunk in chunks]
        longest = max(lengths)
        self._tokens = sum(lengths)
        # Batches of its own: others may join or leave the prompts meanwhile.
        self._layers = [type(layer)(layer.sequences) for layer in caches]
        for layer in self._layers:
            layer.prepare(lengths=lengths, right_padding=[longest - length for length in lengths])
        self._begun = [sequence.offset for sequence in self._layers[0].sequences]
        self._x, self._left = stages.begin(_right_pad_prompts(chunks, max_length=longest), self._layers)
        self._is_cut = stages.depth > 1
        self._set_off = set_off
        self._at_once = 0
        self.done = 0
        self._run = backend.resumable(self._through(), wait_s)

    @property
    def is_through(self) -> bool:
        return not self._left

    @property
    def wait_s(self) -> float:
        """How long it waits for what goes into attention."""
        return self._run.wait_s

    def go_on(self, work: int | None, until: float) -> None:
        """Through some layers more: so many tokens times layers, None for all, or what can be done ``until`` then.

        The last layer, of which only keys and values are wanted, goes with the one before; they are :meth:`rest`.
        """
        if until < math.inf:
            self._at_once = 1
        else:
            self._at_once = len(self._layers) if work is None else max(1, round(work / self._tokens))
        self._run.go_on(until)

    @property
    def rest(self) -> list[mx.array]:
        """What the last layer's caches hold, once all is through."""
        return self._layers[-1].state

    def undo(self) -> None:
        """Take the chunk's tokens out of the layers that have them."""
        self._run.stop()
        for layer in self._layers:
            for sequence, begun in zip(layer.sequences, self._begun, strict=True):
                sequence.pass_over(sequence.offset - begun)  # left before it was attended to
                sequence.trim(sequence.offset - begun)

    def _through(self) -> Iterator[None]:
        """Set off some layers a step, as many as :meth:`go_on` said."""
        while self._left:
            done = len(self._layers) - len(self._left)
            count = self._at_once if self._at_once + 1 < len(self._left) else len(self._left)
            before = self._x
            for _ in range(count):
                before, self._x = self._x, self._left[0](self._x)
                del self._left[0]
            touched = self._layers[done : done + count] if self._left else self._layers[done:-1]
            arrays = [array for layer in touched for array in layer.state]
            self.done += self._tokens * max(1, count if self._left else count - 1)
            self._set_off((self._x if self._left else before) if self._is_cut else _last_row(arrays), arrays)
            del before, arrays
            if self._left:
                yield


class ChunkedPrefill(PromptProcessingBatch):
    """mlx-lm's prompt batch, which returns before the device is through with a chunk.

    Attributes:
        backend: decides where a chunk can be left.
        stages: cuts a chunk's forward pass, where every layer is a :class:`kvlab.caches.LayerCache` that keeps all its
            rows; None: a chunk is computed in one go.
        work: tokens times layers to get through at a time: 0 to wait, None for all of a chunk.
        until: when to leave off instead, on the clock ``time.perf_counter``; infinity: ``work`` counts.
        done: tokens times layers that were set off since the owner last set it to 0, at least 1 if any were worked on.
        stream: where a chunk's layers are computed.
    """

    backend: Backend
    stages: LayerwiseModel | None = None
    work: int | None = None
    until = math.inf
    done = 0
    stream: Any = None
    _pass: PrefillPass | None = None
    _waiting: Chunks | None = None
    _mark: Any = None
    _rest: Any = ()
    _wait_s = 0.0

    @property
    def is_under_way(self) -> bool:
        """True while a chunk is not in all layers: :meth:`go_on`."""
        return self._waiting is not None

    def prompt(self, tokens: Chunks) -> None:
        """Take a chunk of every prompt, and begin with it."""
        if len(self.uids) != len(tokens):
            raise ValueError("The batch length doesn't match the number of inputs")
        if tokens:
            self._waiting = tokens
            self.go_on()

    def go_on(self) -> None:
        """Have the device compute the chunk's next layers."""
        if self._waiting is None or self.work == 0:
            return
        if self.stages is None:
            self._all_at_once(self._waiting)
        elif not self._some_layers(self.stages, self._waiting):
            return
        for known, new in zip(self.tokens, self._waiting, strict=True):
            known += new
        self._waiting = self._pass = None

    def extract_cache(self, idx: int) -> list[Any]:
        self._step_back()
        return super().extract_cache(idx)

    def filter(self, keep: list[int]) -> None:
        self._step_back()
        if self._waiting is not None:
            self._waiting = [self._waiting[i] for i in keep] or None
        self._rest = []  # whoever leaves computes what is its own
        super().filter(keep)

    def stop(self) -> None:
        """Leave a chunk that is under way."""
        self._step_back()
        self._waiting = None

    def _step_back(self) -> None:
        """Before the chunk, which is begun anew: all layers hold the same tokens."""
        if self._pass is not None:
            self._pass.undo()
            self._pass = None

    def _some_layers(self, stages: LayerwiseModel, chunks: Chunks) -> bool:
        """True once the chunk is in all of them."""
        with mx.stream(self.stream):
            mx.async_eval(self._rest)
            self._rest = []  # held on to, it would be copied when it grows
            chunk = self._pass = self._pass or PrefillPass(
                self.backend, stages, chunks, self.prompt_cache, self._set_off, self._wait_s
            )
            before = chunk.done
            chunk.go_on(self.work, self.until)
            self._wait_s = chunk.wait_s
            self.done += max(1, chunk.done - before)
            # Waited for here, it would keep this thread from the others' step.
            self._rest = chunk.rest if chunk.is_through else []
            return chunk.is_through

    def _all_at_once(self, chunks: Chunks) -> None:
        lengths = [len(chunk) for chunk in chunks]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if max(padding):
            for cache in self.prompt_cache:
                cache.prepare(lengths=lengths, right_padding=padding)
        self.model(_right_pad_prompts(chunks, max_length=longest), cache=self.prompt_cache)
        if max(padding):
            for cache in self.prompt_cache:
                cache.finalize()
        state: Any = [cache.state for cache in self.prompt_cache]
        leaves: Any = tree_flatten(state)
        arrays = [array for _, array in leaves if isinstance(array, mx.array) and array.size]
        self._set_off(_last_row(arrays), arrays)
        self.done += sum(lengths)

    def _set_off(self, mark: mx.array | None, arrays: list[mx.array]) -> None:
        """Have the device compute, and wait until it is through with the chunk before."""
        before, self._mark = self._mark, mark
        mx.async_eval(arrays, mark)
        mx.eval(before)


def _last_row(arrays: list[mx.array]) -> mx.array | None:
    """What is there once ``arrays`` are: a number of its own, as holding a row would make the next chunk copy all."""
    last = max(arrays[::-1], key=lambda array: array.ndim > 1, default=None)  # positions are known beforehand
    return None if last is None else last[(..., *[slice(-1, None)] * min(2, last.ndim))].sum()
