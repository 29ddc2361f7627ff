"""Teacher forcing: answers that are given are led through a decoder, and its distributions are compared with others.

The prompt is prefilled under the decoder's policy, then the tokens of the answer come one by one, as in a real decode:
codecs, eviction and reuse act as they do in use. Only the sampled token is replaced by the next one of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.decoder.decoder import Decoder
from kvlab.decoder.stream import Completion
from kvlab.errors import RunError

LED_LOGIT = 1e4
"""The only logit that is not 0 where a token is forced: float16 holds it."""

Observer = Callable[[int, mx.array], None]
"""Gets the place in an answer and the log-probabilities there, float32 ``[vocabulary]``, on the decoder's thread."""


@dataclass(frozen=True)
class ForcedAnswer:
    """Token ids: a prompt, and the answer that follows it in any case."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.answer:
            raise RunError("teacher forcing needs a prompt and an answer of one token or more each")


@dataclass(frozen=True)
class Divergence:
    """How far the distributions of a policy are from those of the uncached model, at each token of an answer.

    Attributes:
        kl: KL divergence of the policy's distribution from the model's own, in nats, float64 ``[tokens]``.
        agrees: whether both have the same most probable token, bool ``[tokens]``.
        log_prob: log-probability of the answer's token under the policy, float64 ``[tokens]``.
        completion: the figures of the request, such as its live bytes.
    """

    kl: np.ndarray
    agrees: np.ndarray
    log_prob: np.ndarray
    completion: Completion


@dataclass(frozen=True)
class Distributions:
    """The distributions of one policy along an answer.

    Attributes:
        log_probs: log-probabilities, float32 ``[tokens, vocabulary]``.
        completion: the figures of the request.
    """

    log_probs: np.ndarray
    completion: Completion

    def divergence_from_itself(self, answer: Sequence[int]) -> Divergence:
        """Return the divergence of these distributions from themselves: none, with the answer's log-probabilities."""
        tokens = len(answer)
        log_prob = self.log_probs[np.arange(tokens), list(answer)].astype(np.float64)
        return Divergence(np.zeros(tokens), np.ones(tokens, dtype=bool), log_prob, self.completion)


def distributions(decoder: Decoder, forced: Sequence[ForcedAnswer]) -> list[Distributions]:
    """Compute the distributions of the decoder's policy at each token of the answers.

    The answers run side by side, as many as the decoder allows. Raises KvlabError as ``Decoder.submit`` does.
    """
    found: list[list[np.ndarray]] = [[] for _ in forced]

    def observer(index: int) -> Observer:
        return lambda _, row: found[index].append(np.array(row))

    completions = _lead(decoder, forced, observer)
    return [Distributions(np.stack(rows), done) for rows, done in zip(found, completions, strict=True)]


def divergences(decoder: Decoder, forced: Sequence[ForcedAnswer], own: Sequence[Distributions]) -> list[Divergence]:
    """Compare the decoder's distributions with ``own``, those of the uncached model at the same answers.

    Raises KvlabError as ``Decoder.submit`` does.
    """
    found: list[list[list[float]]] = [[] for _ in forced]

    def observer(index: int) -> Observer:
        def compare(at: int, row: mx.array) -> None:
            base = mx.array(own[index].log_probs[at])
            kl = mx.maximum((mx.exp(base) * (base - row)).sum(), 0.0)
            agrees = base.argmax() == row.argmax()
            values = mx.stack([kl, agrees.astype(mx.float32), row[forced[index].answer[at]]])
            found[index].append(np.array(values).tolist())

        return compare

    completions = _lead(decoder, forced, observer)
    columns = [np.array(rows, dtype=np.float64).T for rows in found]
    return [
        Divergence(kl, agrees == 1, log_prob, completion)
        for (kl, agrees, log_prob), completion in zip(columns, completions, strict=True)
    ]


def _lead(decoder: Decoder, forced: Sequence[ForcedAnswer], observer: Callable[[int], Observer]) -> list[Completion]:
    """Lead the decoder along all answers, each with the observer of its index."""
    for one in forced:
        if len(one.answer) > len(without_early_end(one.answer, decoder.loaded.eos)):
            raise RunError("an answer goes on behind a token that ends answers; cut it there")
    streams = [
        decoder.submit(one.prompt, max_tokens=len(one.answer), logits_processors=[_Leader(one.answer, observer(index))])
        for index, one in enumerate(forced)
    ]
    return [stream.result() for stream in streams]


class _Leader:
    """A logits processor that hands on the log-probabilities of a request, and forces its next token."""

    def __init__(self, answer: Sequence[int], observe: Observer) -> None:
        self._answer = answer
        self._observe = observe
        self._at = 0

    def __call__(self, _: Any, logits: mx.array) -> mx.array:
        at, self._at = self._at, self._at + 1
        if at >= len(self._answer):  # a decoder may be a step ahead at the end
            return logits
        row = logits[0].astype(mx.float32)
        self._observe(at, row - mx.logsumexp(row))
        led = mx.zeros_like(logits)
        led[:, self._answer[at]] = LED_LOGIT
        return led


def without_early_end(answer: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """Return the answer up to its first end token, that token included: no decoder goes on behind it."""
    stop = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
    return tuple(answer[:stop])
