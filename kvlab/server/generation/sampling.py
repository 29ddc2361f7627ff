"""Samplers and logits processors for what a request asks for. Arrays are made on the decoder's thread only."""

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


class Sampling(NamedTuple):
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``min_p`` 0 are off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()


def sampler(how: Sampling, choice: int, size: int) -> Sampler | None:
    """None is greedy. Unseeded requests that sample alike share a sampler, so that the batch is sampled in one call."""
    if how.temperature == 0:
        return None
    top_k = how.top_k if how.top_k < size else 0
    if how.seed is None:
        return _shared(how.temperature, how.top_p, top_k, how.min_p)
    return Seeded(how._replace(top_k=top_k), how.seed + choice)


@lru_cache(maxsize=64)
def _shared(temperature: float, top_p: float, top_k: int, min_p: float) -> Sampler:
    made: Sampler = make_sampler(temp=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    return made


class Seeded:
    """Draws by seed and place, so that the same seed gives the same tokens beside any other requests, and again after
    a pause. Its :meth:`watch` must be among the request's logits processors.
    """

    def __init__(self, how: Sampling, seed: int) -> None:
        self._how, self._seed = how, seed
        self._place = 0

    def watch(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Notes the place; changes nothing."""
        self._place = tokens.size
        return logits

    def __call__(self, logprobs: mx.array) -> mx.array:
        drawn = hashlib.blake2b(f"{self._seed} {self._place}".encode(), digest_size=8).digest()
        key = mx.random.key(int.from_bytes(drawn))
        if 0 < self._how.top_p < 1:
            logprobs = apply_top_p(logprobs, self._how.top_p)
        if self._how.min_p > 0:
            logprobs = apply_min_p(logprobs, self._how.min_p)
        if self._how.top_k > 0:
            logprobs = apply_top_k(logprobs, self._how.top_k)
        return mx.random.categorical(logprobs / self._how.temperature, key=key)


def processors(how: Sampling, prompt_tokens: int) -> list[Processor]:
    """Bias and penalties. Penalties count generated tokens only, as OpenAI's do; repetition looks at everything."""
    made: list[Processor] = []
    if how.bias:
        made.append(Bias(dict(how.bias)))
    if how.presence or how.frequency or how.repetition != 1:
        made.append(Penalties(how, prompt_tokens))
    return made


class Bias:
    """Adds to the logits of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._bias = bias

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, mx.array(list(self._bias))].add(mx.array(list(self._bias.values()), dtype=logits.dtype))


class Penalties:
    """Presence, frequency and repetition penalties."""

    def __init__(self, how: Sampling, prompt_tokens: int) -> None:
        self._how, self._prompt_tokens = how, prompt_tokens

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        how, dtype = self._how, logits.dtype
        said = tokens[self._prompt_tokens :]
        if said.size and (how.presence or how.frequency):
            counts = mx.zeros((logits.shape[-1],), dtype=dtype).at[said].add(mx.ones(said.shape, dtype=dtype))
            logits = logits - how.frequency * counts - how.presence * (counts > 0).astype(dtype)
        if how.repetition != 1:
            seen = mx.zeros((logits.shape[-1],), dtype=mx.bool_).at[tokens].maximum(mx.array(True))
            worse = mx.where(logits < 0, logits * how.repetition, logits / how.repetition)
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
        self._place = 0
        self._before: mx.array | None = None
        self._pending: deque[list[Any]] = deque()
        self._tokens_out = 0
        self.entries: list[TokenLogprob] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Return ``logits``; nothing is evaluated here."""
        before, self._before = self._before, logits
        is_new, self._place = tokens.size > self._place, tokens.size
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
