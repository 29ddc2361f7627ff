"""Measure the distance of a batch's logits from those of each request alone: the bound of ``lossless`` in 16 bits.

In float32 a batch gives the tokens of each request alone. In 16 bits no batch does, because sums of other shapes are
rounded differently; this holds for mlx-lm's own batch too. There the promise is that a policy's logits lie no farther
from the request alone than those of mlx-lm's own batch, give or take a fifth.

The answer of each request alone is taken as given: every batch is led along its tokens, so that all logits can be
compared, also behind the place where the batch would have taken another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from kvlab.caches import batching
from kvlab.decoder.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy

HALF_PRECISION_DTYPES = ("bfloat16", "float16")
COMPARED_TOKENS = 12
"""Tokens of each answer whose logits are compared."""
BOUND_FACTOR = 1.2
"""How much farther than those of mlx-lm's own batch a policy's logits may lie."""
LED_LOGIT = 1e4
"""The logit of the token that a run is led to: above any of a model's, and within what float16 holds."""

Logits = list[np.ndarray]
"""Logits by request, float32 ``[COMPARED_TOKENS, vocabulary]``."""
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Distances:
    """Distances of one batch from its requests alone.

    Attributes:
        values: one a request: the mean absolute difference of logits, over its tokens and the vocabulary.
        parted: requests whose greedy answer would have been another.
    """

    values: tuple[float, ...] = ()
    parted: int = 0

    def __add__(self, other: Distances) -> Distances:
        return Distances(self.values + other.values, self.parted + other.parted)

    @property
    def mean(self) -> float:
        """Mean over the requests; 0 without any."""
        return float(np.mean(self.values)) if self.values else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean: most requests meet no rounding that falls the other way, a few meet many."""
        return float(np.std(self.values, ddof=1) / len(self.values) ** 0.5) if len(self.values) > 1 else 0.0


def bound(own: Distances, other: Distances) -> float:
    """Return how far ``other`` may lie on average, where mlx-lm's own batch of the same requests lies at ``own``.

    Few requests were measured, so two standard errors of the mean difference, request by request, are allowed.
    """
    beyond = Distances(tuple(b - BOUND_FACTOR * a for a, b in zip(own.values, other.values, strict=True)))
    return BOUND_FACTOR * own.mean + 2 * beyond.error


def distances(seen: Logits, wanted: Logits) -> Distances:
    """Compare the logits of a batch with those of each request alone."""
    pairs = list(zip(seen, wanted, strict=True))
    return Distances(
        tuple(float(np.abs(some - others).mean()) for some, others in pairs),
        sum(not np.array_equal(some.argmax(axis=1), others.argmax(axis=1)) for some, others in pairs),
    )


def needs_bound(loaded: LoadedModel) -> bool:
    """Return whether the model computes in a precision in which no batch is exact."""
    return loaded.dtype in HALF_PRECISION_DTYPES


def alone(loaded: LoadedModel, prompts: Prompts, prefill_step: int) -> Logits:
    """Compute the logits of each request alone, with mlx-lm's own caches."""
    return [_in_mlx_lm(loaded, [prompt], [Leader(loaded)], prefill_step)[0] for prompt in prompts]


def in_mlx_lm_batch(loaded: LoadedModel, prompts: Prompts, wanted: Logits, prefill_step: int) -> Logits:
    """Compute the logits of all requests in one batch of mlx-lm's own, led along the answers of ``wanted``.

    Where mlx-lm's batch of this model is wrong or fails, they are ``wanted`` itself: then the bound is no distance.
    """
    if not batching(loaded.model):
        return wanted
    return _in_mlx_lm(loaded, prompts, leaders(loaded, wanted), prefill_step)


def under(
    loaded: LoadedModel, policy: Policy, prompts: Prompts, wanted: Logits, prefill_step: int, times: int = 2
) -> Logits:
    """Compute the logits of all requests side by side under ``policy``, led along the answers of ``wanted``.

    They are sent ``times`` times, and the last logits are returned: those of the second time start from live KV and KV
    at rest of the first.
    """
    with Decoder(loaded, policy, max_concurrency=len(prompts), prefill_step=prefill_step) as decoder:
        for _ in range(times):
            led = leaders(loaded, wanted)
            streams = [
                decoder.submit(prompt, max_tokens=COMPARED_TOKENS, logits_processors=[leader])
                for prompt, leader in zip(prompts, led, strict=True)
            ]
            for stream in streams:
                stream.result()
    return [leader.logits for leader in led]


def leaders(loaded: LoadedModel, wanted: Logits) -> list[Leader]:
    """Build a leader for each request, along the greedy answer of its logits in ``wanted``."""
    return [Leader(loaded, logits.argmax(axis=1).tolist()) for logits in wanted]


class Leader:
    """A logits processor that keeps the logits of a request, and leads it to given tokens; without them it is greedy.

    No request ends early: an end token never has the largest logit.
    """

    def __init__(self, loaded: LoadedModel, tokens: Sequence[int] | None = None) -> None:
        self._ends = mx.array(sorted(loaded.eos))
        self._tokens = tokens
        self._seen: list[np.ndarray] = []

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        logits[:, self._ends] = -LED_LOGIT
        self._seen.append(np.array(logits[0].astype(mx.float32)))  # on the thread that computes them
        at = len(self._seen) - 1
        if self._tokens is None or at >= len(self._tokens):
            return logits
        led = logits + 0
        led[:, self._tokens[at]] = LED_LOGIT
        return led

    @property
    def logits(self) -> np.ndarray:
        """Return float32 ``[COMPARED_TOKENS, vocabulary]``; a decoder may have been a step ahead at the end."""
        return np.stack(self._seen[:COMPARED_TOKENS])


def _in_mlx_lm(loaded: LoadedModel, prompts: Prompts, led: list[Leader], prefill_step: int) -> Logits:
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in loaded.eos],
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
        prefill_step_size=prefill_step,
    )
    generator.insert(
        [list(prompt) for prompt in prompts],
        max_tokens=[COMPARED_TOKENS] * len(prompts),
        caches=[make_prompt_cache(loaded.model) for _ in prompts],
        logits_processors=[[leader] for leader in led],
    )
    left = len(prompts)
    while left:
        left -= sum(one.finish_reason is not None for one in generator.next_generated())
    generator.close()
    return [leader.logits for leader in led]
