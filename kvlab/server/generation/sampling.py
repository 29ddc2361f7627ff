"""Samplers and logits processors of a request. Arrays are made on the decoder's thread only."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_sampler

from kvlab.decoder.request import Processor, Sampler

SUM_CHUNK_TOKENS = 256
"""Tokens whose probabilities are summed together, before these sums are."""

MIN_TEMPERATURE = 1e-4
"""Below it sampling is greedy: logits divided by it overflow in 16 bits, and at 1e-38 in 32 bits too."""


class Sampling(NamedTuple):
    """Parameters of sampling. ``temperature`` 0 and ``top_p`` 0 are greedy; ``top_k`` 0 and ``min_p`` 0 are off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()


def sampler(sampling: Sampling, choice: int, size: int) -> Sampler | None:
    """Return a request's sampler, None for greedy. Unseeded requests with equal parameters share one, so that mlx-lm
    samples them in one call."""
    # Below the least temperature, and without mass for others, nothing but the likeliest token is left.
    if sampling.temperature < MIN_TEMPERATURE or sampling.top_p == 0:
        return None
    top_k = sampling.top_k if sampling.top_k < size else 0
    if sampling.seed is None:
        return _shared(sampling.temperature, sampling.top_p, top_k, sampling.min_p)
    return SeededSampler(sampling._replace(top_k=top_k), sampling.seed + choice)


@lru_cache(maxsize=64)
def _shared(temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    made: Sampler = make_sampler(temp=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    return made


class SeededSampler:
    """Samples by seed and position: the same seed gives the same tokens beside any other requests, and after a pause.

    Its :meth:`note_position` must be among the request's logits processors.
    """

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self._sampling, self._seed = sampling, seed
        self._position = 0

    def note_position(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Note the position; changes no logits."""
        self._position = tokens.size
        return logits

    def __call__(self, logprobs: mx.array) -> mx.array:
        drawn = hashlib.blake2b(f"{self._seed} {self._position}".encode(), digest_size=8).digest()
        key = mx.random.key(int.from_bytes(drawn))
        if 0 < self._sampling.top_p < 1:
            logprobs = apply_top_p(logprobs, self._sampling.top_p)
        if self._sampling.min_p > 0:
            logprobs = apply_min_p(logprobs, self._sampling.min_p)
        if self._sampling.top_k > 0:
            logprobs = apply_top_k(logprobs, self._sampling.top_k)
        return mx.random.categorical(logprobs / self._sampling.temperature, key=key)


def processors(sampling: Sampling, prompt_tokens: int) -> list[Processor]:
    """Return bias and penalties. Presence and frequency count generated tokens, as OpenAI's do; repetition all."""
    made: list[Processor] = []
    if sampling.bias:
        made.append(LogitBias(dict(sampling.bias)))
    if sampling.presence or sampling.frequency or sampling.repetition != 1:
        made.append(Penalties(sampling, prompt_tokens))
    return made


class LogitBias:
    """A logits processor that adds to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._bias = bias

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, mx.array(list(self._bias))].add(mx.array(list(self._bias.values()), dtype=logits.dtype))


class Penalties:
    """A logits processor for presence, frequency and repetition penalties."""

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        self._sampling, self._prompt_tokens = sampling, prompt_tokens

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        sampling, dtype = self._sampling, logits.dtype
        generated = tokens[self._prompt_tokens :]
        if generated.size and (sampling.presence or sampling.frequency):
            counts = mx.zeros((logits.shape[-1],), dtype=dtype).at[generated].add(mx.ones(generated.shape, dtype=dtype))
            logits = logits - sampling.frequency * counts - sampling.presence * (counts > 0).astype(dtype)
        if sampling.repetition != 1:
            seen = mx.zeros((logits.shape[-1],), dtype=mx.bool_).at[tokens].maximum(mx.array(True))
            worse = mx.where(logits < 0, logits * sampling.repetition, logits / sampling.repetition)
            logits = mx.where(seen, worse, logits)
        return logits


class TokenLogprob(NamedTuple):
    """A generated token's log-probability, and those of the most likely ones ``(token, logprob)``."""

    logprob: float
    top: list[tuple[int, float]]


class Logprobs:
    """Reports log-probabilities: a logits processor that changes no logits, to be put last.

    mlx-lm computes one step ahead. The call that has a token as its newest one builds the arrays of that token's report
    and lets the step depend on them: they are computed with the step, and no call waits for them. When the step's own
    token is handed out they are complete, and :meth:`token_out` reads them; so a report comes one token late.
    After a pause the processor is called with the same tokens once more.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._position = 0
        self._before: mx.array | None = None
        self._pending: deque[list[Any]] = deque()
        self._tokens_out = 0
        self.entries: list[TokenLogprob] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return ``logits``; nothing is evaluated here."""
        before, self._before = self._before, logits
        is_new, self._position = tokens.size > self._position, tokens.size
        if before is None or not is_new:
            return logits
        report = logprob_arrays(before, tokens[-1:], self._top)
        self._pending.append(report)
        return mx.depends(logits, report)

    def token_out(self, token: int | None) -> None:
        """Note that ``token`` was handed out (None: the request ended), and read the reports of the tokens before it.

        At the end this may wait for the step that is being computed.
        """
        while self._pending and len(self.entries) < self._tokens_out:
            own, order, best = (array.tolist() for array in self._pending.popleft())
            self.entries.append(TokenLogprob(own[0], list(zip(order, best, strict=True))))
        if token is not None:
            self._tokens_out += 1


def logprob_arrays(logits: mx.array, token: mx.array, top: int) -> list[Any]:
    """Build, without evaluation, arrays of float32 log-probabilities of ``logits`` ``[1, vocabulary]``.

    Returns three: that of ``token`` ``[1]``, the ``top`` likeliest tokens, and theirs, the likeliest first.
    """
    logits = logits[0].astype(mx.float32)
    logits = logits - logits.max()
    # Summed in two steps: the rounding of one long sum reaches 1e-5 where thousands of tokens are unlikely.
    parts = mx.pad(mx.exp(logits), (0, -logits.size % SUM_CHUNK_TOKENS)).reshape(-1, SUM_CHUNK_TOKENS).sum(axis=-1)
    total = mx.log(parts.sum())
    top = min(top, logits.size)
    likeliest = mx.argpartition(-logits, kth=max(0, top - 1))[:top]
    likeliest = likeliest[mx.argsort(-logits[likeliest])]
    return [logits[token] - total, likeliest, logits[likeliest] - total]
