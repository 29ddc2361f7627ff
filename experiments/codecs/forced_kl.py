"""Distributions behind a context, teacher-forced in short chunks, and their KL from those of ``full``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from kvlab.caches import make_caches
from kvlab.policies import Policy

PREFILL_STEP = 512
FORCED_STEP = 16
"""Tokens of an answer at once: few, so that recent rows that a codec leaves alone stay recent for all of them."""


@dataclass(frozen=True)
class Forced:
    """What a policy gave behind a context.

    Attributes:
        log_probs: log-probabilities before each token of the answer, float32 ``[tokens, vocabulary]``.
        live_bytes: bytes of the caches at the end, unused capacity included.
    """

    log_probs: mx.array
    live_bytes: int


def forced(model: Any, policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> Forced:
    """Prefill a prompt and lead the model along an answer; attention reads rows as the policy has written them."""
    caches = make_caches(model, policy, prompt_tokens=len(prompt))
    tokens = [*prompt, *answer[:-1]]
    start = len(prompt) - 1
    for first in range(0, start, PREFILL_STEP):
        mx.eval(model(mx.array([tokens[first : min(first + PREFILL_STEP, start)]]), cache=caches))
    parts = []
    for first in range(start, len(tokens), FORCED_STEP):
        logits = model(mx.array([tokens[first : first + FORCED_STEP]]), cache=caches)[0].astype(mx.float32)
        parts.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(parts[-1])
    return Forced(mx.concatenate(parts), sum(cache.nbytes for cache in caches))


def divergence(own: Forced, other: Forced) -> dict[str, float]:
    """Return the mean KL in nats of ``other`` from ``own``, and the share of tokens with the same best one."""
    kl = (mx.exp(own.log_probs) * (own.log_probs - other.log_probs)).sum(axis=-1)
    same = own.log_probs.argmax(axis=-1) == other.log_probs.argmax(axis=-1)
    return {"kl": mx.maximum(kl, 0.0).mean().item(), "top1": same.astype(mx.float32).mean().item()}
