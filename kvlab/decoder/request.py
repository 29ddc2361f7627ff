"""``Request``: the state of one request in the decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches import Eviction, LayerCache
from kvlab.decoder.stream import Completion, Stream
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]


@dataclass(eq=False)
class Request:
    """One request from its submission to its end. Times are ``time.perf_counter`` seconds.

    Attributes:
        group: requests of one group share places as one; None is a group of its own.
        uid: its number in mlx-lm's generator while it runs.
        caches: its layer caches while it has any; ``layers`` are those that are kvlab's own.
        stored: leading tokens that were given to the store.
        pushed: tokens that were handed to the stream.
        cached: leading tokens that were reused, by tier in ``by_tier``; ``miss`` says why the next one was not.
        tokens: generated tokens, and ``times`` when they came.
        compress_after: prompt tokens after which a scorer chooses the rows that stay, before it has seen the others.
        prefilled: prompt tokens that events have reported.
        is_decoding: its whole context is computed, and tokens follow one by one.
        path: the nodes of the prefix tree that it reads.
        evictions: those to report: tokens at that time, layer, and eviction.
        waits_for_prefix_of: the request whose prefill computes ``waits_for_tokens`` tokens that both share.
        checkpoints: token counts at which its prefill keeps a checkpoint.
        checkpointed: tokens of its prompt that are at rest, and with them what other layers need.
        cut: tokens that were dropped from its prompt before it was submitted here.
        discarded: spans of its context that were dropped at the context limit, each as it was counted then.
        context_array: the context, int32, for comparison.
    """

    stream: Stream
    prompt: list[int]
    max_tokens: int
    sampler: Sampler | None
    processors: Sequence[Processor]
    stop: Sequence[Sequence[int]]
    tags: Mapping[str, Any]
    tenant: str
    compress_after: int
    priority: int = 0
    group: object = None
    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    lookup_s: float = 0.0
    restore_s: float = 0.0
    uid: int | None = None
    caches: list[Any] = field(default_factory=list)
    layers: list[LayerCache] = field(default_factory=list)
    stored: int = 0
    pushed: int = 0
    cached: int = 0
    by_tier: Mapping[str, int] = field(default_factory=dict)
    miss: str = ""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    prefilled: int = 0
    is_decoding: bool = False
    path: list[Any] = field(default_factory=list)
    evictions: list[tuple[int, int, Eviction]] = field(default_factory=list)
    waits_for_prefix_of: Request | None = None
    waits_for_tokens: int = 0
    checkpoints: tuple[int, ...] = ()
    checkpointed: int = 0
    cut: int = 0
    discarded: list[tuple[int, int]] = field(default_factory=list)

    context_array: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    _start: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.group = self.stream if self.group is None else self.group

    @property
    def context(self) -> list[int]:
        """The prompt and the generated tokens, without discarded ones: where a preempted request continues."""
        context = self.prompt + self.tokens
        for start, stop in self.discarded:
            del context[start:stop]
        return context

    @property
    def discarded_tokens(self) -> int:
        """Number of tokens that were dropped at the context limit."""
        return sum(stop - start for start, stop in self.discarded)

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service: by higher priority, then by earlier submission."""
        return (-self.priority, self.number)

    @property
    def is_reported(self) -> bool:
        """Whether mlx-lm has reported all tokens that were handed out: only then it can start again from its tokens.

        Never after a shift: keys that were moved are not those of a prompt without the discarded tokens.
        """
        return self.pushed <= len(self.tokens) and not self.discarded

    @property
    def computed(self) -> int:
        """Number of tokens in all layers: a chunk of the prompt may be in the first layers only."""
        return self.layers[-1].offset

    @property
    def to_compute(self) -> int:
        """Number of tokens of the context that are not in all layers."""
        held = self.computed if self.layers else self.cached
        return len(self.prompt) + len(self.tokens) - self.discarded_tokens - held

    def begin(self) -> list[int]:
        """Start, or continue after a preemption; return the tokens to compute or reuse."""
        self.cached = self.stored = self.prefilled = self.checkpointed = 0
        self.checkpoints = ()
        self.is_decoding = False
        self.by_tier = {}
        self.context_array = np.array(self.context, np.int32)
        return self.context

    def note_start(self) -> None:
        """Note the figures of the first start; continuing after a preemption does not change them."""
        self._start = self._start or {
            "cached_tokens": self.cached,
            "cached_by_tier": dict(self.by_tier),
            "miss": self.miss,
            "lookup_ms": 1e3 * self.lookup_s,
            "restore_ms": 1e3 * self.restore_s,
        }

    def hand_out(self, token: int, end_tokens: frozenset[int], *, early: bool = False) -> None:
        """Push a token to the stream, once; end tokens are not pushed. ``early``: it is not among ``tokens`` yet."""
        place = len(self.tokens) + 1 if early else len(self.tokens)
        if place > self.pushed:
            self.pushed = place
            if token not in end_tokens:
                self.stream.push(token)

    @property
    def number(self) -> int:
        """Number of the request in its decoder."""
        return self.stream.request

    def completion(self, reason: str, kv_bytes: int, end_tokens: frozenset[int]) -> Completion:
        """Return the figures of this request, which ended for ``reason``."""
        ended = reason == "stop" and self.tokens[-1] in end_tokens
        tokens = self.tokens[:-1] if ended else self.tokens
        gaps = [1e3 * (b - a) for a, b in zip(self.times, self.times[1:], strict=False)]
        first = self.times[0] if self.times else None
        start = self._start or {
            "cached_tokens": 0, "cached_by_tier": {}, "miss": "", "lookup_ms": 0.0, "restore_ms": 0.0
        }  # fmt: skip
        queued = (self.admitted or time.perf_counter()) - self.submitted
        ttft = first - self.submitted if first is not None else 0.0
        spent = 1e3 * (ttft - queued) - start["lookup_ms"] - start["restore_ms"]
        return Completion(
            request=self.number,
            tokens=tuple(tokens),
            finish_reason=reason,
            prompt_tokens=len(self.prompt),
            queue_ms=1e3 * queued,
            prefill_ms=spent if first is not None else 0.0,
            ttft_ms=1e3 * ttft,
            **start,
            tpot_ms=sum(gaps) / len(gaps) if gaps else 0.0,
            itl_ms=tuple(gaps),
            kv_bytes_live=kv_bytes,
            tags=self.tags,
            cut_tokens=self.cut,
            discarded_tokens=self.discarded_tokens,
        )


def check_request(loaded: LoadedModel, prompt: Sequence[int], max_tokens: int, compress_after: int) -> None:
    """Raise KvlabError for an empty prompt, no tokens to generate, or a token or count outside its range."""
    if len(prompt) == 0:
        raise KvlabError("the prompt has no tokens: send at least one")
    if max_tokens < 1:
        raise KvlabError(f"max_tokens={max_tokens} must be 1 or more")
    if not 1 <= compress_after <= len(prompt):
        raise KvlabError(f"compress_after={compress_after} must be 1 to {len(prompt)}, the tokens of the prompt")
    if min(prompt) < 0 or max(prompt) >= loaded.vocab_size:
        raise KvlabError(f"the prompt holds a token outside the model's vocabulary, 0 to {loaded.vocab_size - 1}")
