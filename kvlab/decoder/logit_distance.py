"""Measure the distance of a batch's logits from those of each request alone: the bound of ``lossless`` in 16 bits.

In float32 a batch gives the tokens of each request alone. In 16 bits no batch does, because sums of other shapes are
rounded differently; this holds for mlx-lm's own batch too. There the promise is that a policy's logits lie no farther
from the request alone than those of mlx-lm's own batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from kvlab.decoder.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy

HALF_PRECISION_DTYPES = ("bfloat16", "float16")
COMPARED_TOKENS = 8
"""Tokens of each answer whose logits are compared."""

Logits = list[np.ndarray]
"""Logits by request, float32 ``[tokens, vocabulary]``."""
Prompts = Sequence[Sequence[int]]


def needs_bound(loaded: LoadedModel) -> bool:
    """Return whether the model computes in a precision in which no batch is exact."""
    return loaded.dtype in HALF_PRECISION_DTYPES


def alone(loaded: LoadedModel, prompts: Prompts, prefill_step: int) -> Logits:
    """Compute the logits of each request alone, with mlx-lm's own caches."""
    return [_in_mlx_lm(loaded, [prompt], prefill_step)[0] for prompt in prompts]


def in_mlx_lm_batch(loaded: LoadedModel, prompts: Prompts, prefill_step: int) -> Logits:
    """Compute the logits of all requests in one batch of mlx-lm's own."""
    return _in_mlx_lm(loaded, prompts, prefill_step)


def under(loaded: LoadedModel, policy: Policy, prompts: Prompts, prefill_step: int) -> Logits:
    """Compute the logits of all requests side by side under ``policy``.

    They are sent twice, and the second logits are returned: those start from live KV and KV at rest of the first.
    """
    with Decoder(loaded, policy, max_concurrency=len(prompts), prefill_step=prefill_step) as decoder:
        for _ in range(2):
            logs: list[list[np.ndarray]] = [[] for _ in prompts]
            streams = [
                decoder.submit(prompt, max_tokens=COMPARED_TOKENS, logits_processors=[_keep(loaded, log)])
                for prompt, log in zip(prompts, logs, strict=True)
            ]
            for stream in streams:
                stream.result()
            seen = [_stacked(log) for log in logs]
    return seen


def distance(seen: Logits, wanted: Logits) -> float:
    """Return the mean absolute difference of logits, over the tokens of each request until its answers differ."""
    parts: list[float] = []
    for some, others in zip(seen, wanted, strict=True):
        for one, other in zip(some, others, strict=True):
            parts.append(float(np.abs(one - other).mean()))
            if one.argmax() != other.argmax():
                break
    return float(np.mean(parts)) if parts else 0.0


def _in_mlx_lm(loaded: LoadedModel, prompts: Prompts, prefill_step: int) -> Logits:
    generator = BatchGenerator(
        loaded.model,
        completion_batch_size=len(prompts),
        prefill_batch_size=len(prompts),
        prefill_step_size=prefill_step,
    )
    logs: list[list[np.ndarray]] = [[] for _ in prompts]
    generator.insert(
        [list(prompt) for prompt in prompts],
        max_tokens=[COMPARED_TOKENS] * len(prompts),
        caches=[make_prompt_cache(loaded.model) for _ in prompts],
        logits_processors=[[_keep(loaded, log)] for log in logs],
    )
    while any(len(log) < COMPARED_TOKENS for log in logs):
        generator.next()
    generator.close()
    return [_stacked(log) for log in logs]


def _keep(loaded: LoadedModel, log: list[np.ndarray]) -> Callable[[mx.array, mx.array], mx.array]:
    ends = mx.array(sorted(loaded.eos))

    def process(_: mx.array, logits: mx.array) -> mx.array:
        log.append(np.array(logits[0].astype(mx.float32)))  # on the thread that computes them
        logits[:, ends] = -1e9  # so that all answers have as many tokens
        return logits

    return process


def _stacked(log: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(log[:COMPARED_TOKENS])  # the decoder may have been a step ahead at the end
