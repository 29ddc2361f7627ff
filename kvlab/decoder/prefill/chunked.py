"""``ChunkedPrefill``: prefill beside decoding sequences, a few layers of a chunk of prompt in each round."""

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
StartComputing = Callable[[mx.array | None, list[mx.array]], None]


class PrefillPass:
    """The forward pass of one chunk of every prompt, which can be interrupted.

    Args:
        backend: decides where the pass can be interrupted.
        caches: the prompts' batches, one a layer.
        start_computing: has the device compute arrays; the first one, which may be None, is waited for a round later.
        wait_s: seconds that attention is expected to wait for its inputs.

    Attributes:
        done: tokens times layers that the device was given to compute.
    """

    def __init__(
        self,
        backend: Backend,
        layerwise: LayerwiseModel,
        chunks: Chunks,
        caches: Sequence[BatchLayerCache],
        start_computing: StartComputing,
        wait_s: float,
    ) -> None:
        lengths = [len(chunk) for chunk in chunks]
        longest = max(lengths)
        self._tokens = sum(lengths)
        # Batches of its own: sequences may join or leave the prompts during the pass.
        self._layers = [type(layer)(layer.sequences) for layer in caches]
        for layer in self._layers:
            layer.prepare(lengths=lengths, right_padding=[longest - length for length in lengths])
        self._begun = [sequence.offset for sequence in self._layers[0].sequences]
        self._x, self._left = layerwise.begin(_right_pad_prompts(chunks, max_length=longest), self._layers)
        self._is_split = layerwise.depth > 1
        self._start_computing = start_computing
        self._layers_at_once = 0
        self.done = 0
        self._work = backend.resumable(self._steps(), wait_s)

    @property
    def is_done(self) -> bool:
        """Whether the chunk has gone through all layers."""
        return not self._left

    @property
    def wait_s(self) -> float:
        """Seconds that attention is expected to wait for its inputs."""
        return self._work.wait_s

    def advance(self, work: int | None, until: float) -> None:
        """Compute more layers: ``work`` tokens times layers, None for all of them.

        A finite ``until``, a time of ``time.perf_counter``, counts instead of ``work``. The last layer, of which only
        keys and values are needed, is computed with the one before it; see :attr:`last_layer_state`.
        """
        if until < math.inf:
            self._layers_at_once = 1
        else:
            self._layers_at_once = len(self._layers) if work is None else max(1, round(work / self._tokens))
        self._work.resume(until)

    @property
    def last_layer_state(self) -> list[mx.array]:
        """Arrays of the last layer's caches; they are complete once the pass is done."""
        return self._layers[-1].state

    def undo(self) -> None:
        """Remove the chunk's tokens from the layers that have them."""
        self._work.stop()
        for layer in self._layers:
            for sequence, begun in zip(layer.sequences, self._begun, strict=True):
                sequence.skip_attention(sequence.offset - begun)  # interrupted before attention
                sequence.trim(sequence.offset - begun)

    def _steps(self) -> Iterator[None]:
        """Start some layers in each step, as many as :meth:`advance` said."""
        while self._left:
            done = len(self._layers) - len(self._left)
            count = self._layers_at_once if self._layers_at_once + 1 < len(self._left) else len(self._left)
            before = self._x
            for _ in range(count):
                before, self._x = self._x, self._left[0](self._x)
                del self._left[0]
            touched = self._layers[done : done + count] if self._left else self._layers[done:-1]
            arrays = [array for layer in touched for array in layer.state]
            self.done += self._tokens * max(1, count if self._left else count - 1)
            self._start_computing((self._x if self._left else before) if self._is_split else _last_row(arrays), arrays)
            del before, arrays
            if self._left:
                yield


class ChunkedPrefill(PromptProcessingBatch):
    """mlx-lm's prompt batch, which returns before the device has computed a chunk.

    Attributes:
        backend: decides where a chunk can be interrupted.
        layerwise: splits a chunk's forward pass, where every layer is a :class:`kvlab.caches.LayerCache` that keeps all
            its rows; None: a chunk is computed in one pass.
        work: tokens times layers to compute at a time: 0 to wait, None for all of a chunk.
        until: time of ``time.perf_counter`` at which to stop, which counts instead of ``work``; infinity: none.
        done: tokens times layers that the device was given since the owner last set it to 0, at least 1 if any were.
        stream: where a chunk's layers are computed.
    """

    backend: Backend
    layerwise: LayerwiseModel | None = None
    work: int | None = None
    until = math.inf
    done = 0
    stream: Any = None
    _pass: PrefillPass | None = None
    _waiting: Chunks | None = None
    _awaited: Any = None
    _last_layer_state: Any = ()
    _wait_s = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether a chunk has layers left to compute: :meth:`advance`."""
        return self._waiting is not None

    def prompt(self, tokens: Chunks) -> None:
        """Take a chunk of every prompt, and begin to compute it. Raises ValueError for another number of prompts."""
        if len(self.uids) != len(tokens):
            raise ValueError("The batch length doesn't match the number of inputs")
        if tokens:
            self._waiting = tokens
            self.advance()

    def advance(self) -> None:
        """Have the device compute the chunk's next layers."""
        if self._waiting is None or self.work == 0:
            return
        if self.layerwise is None:
            self._compute_all(self._waiting)
        elif not self._compute_some_layers(self.layerwise, self._waiting):
            return
        for known, new in zip(self.tokens, self._waiting, strict=True):
            known += new
        self._waiting = self._pass = None

    def extract_cache(self, idx: int) -> list[Any]:
        """Return the caches of one prompt, without the tokens of an unfinished chunk: none before the first chunk."""
        self._discard_pass()
        if all(cache.empty() for cache in self.prompt_cache):
            return []  # mlx-lm's caches cannot take one sequence out of arrays that they do not have yet
        return super().extract_cache(idx)

    def filter(self, keep: list[int]) -> None:
        """Keep the prompts ``keep``, in that order; an unfinished chunk begins again."""
        self._discard_pass()
        if self._waiting is not None:
            self._waiting = [self._waiting[i] for i in keep] or None
        self._last_layer_state = []  # each sequence computes its own when it is read
        super().filter(keep)

    def stop(self) -> None:
        """Give up a chunk that is under way."""
        self._discard_pass()
        self._waiting = None

    def _discard_pass(self) -> None:
        """Remove the tokens of an unfinished chunk, which begins again: then all layers hold the same tokens."""
        if self._pass is not None:
            self._pass.undo()
            self._pass = None

    def _compute_some_layers(self, layerwise: LayerwiseModel, chunks: Chunks) -> bool:
        """Compute more layers; return whether the chunk has gone through all of them."""
        with mx.stream(self.stream):
            mx.async_eval(self._last_layer_state)
            self._last_layer_state = []  # arrays that are held elsewhere are copied when a cache grows
            chunk = self._pass = self._pass or PrefillPass(
                self.backend, layerwise, chunks, self.prompt_cache, self._start_computing, self._wait_s
            )
            before = chunk.done
            chunk.advance(self.work, self.until)
            self._wait_s = chunk.wait_s
            self.done += max(1, chunk.done - before)
            # Evaluated in the next round: waiting for it here would delay the decode step of the others.
            self._last_layer_state = chunk.last_layer_state if chunk.is_done else []
            return chunk.is_done

    def _compute_all(self, chunks: Chunks) -> None:
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
        named: Any = tree_flatten(state)
        arrays = [array for _, array in named if isinstance(array, mx.array) and array.size]
        self._start_computing(_last_row(arrays), arrays)
        self.done += sum(lengths)

    def _start_computing(self, awaited: mx.array | None, arrays: list[mx.array]) -> None:
        """Have the device compute ``arrays`` and ``awaited``, and wait for the ``awaited`` of the last call."""
        before, self._awaited = self._awaited, awaited
        mx.async_eval(arrays, awaited)
        mx.eval(before)


def _last_row(arrays: list[mx.array]) -> mx.array | None:
    """Return a number that is computed once ``arrays`` are: a view of a row would make the next chunk copy them all."""
    last = max(arrays[::-1], key=lambda array: array.ndim > 1, default=None)  # not positions, which are known before
    return None if last is None else last[(..., *[slice(-1, None)] * min(2, last.ndim))].sum()
