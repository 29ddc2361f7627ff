"""The divergence of a policy's next-token distributions from those of the uncached model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvlab import models
from kvlab.caches import check_model, make_caches
from kvlab.errors import RunError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy


def divergence(
    policy: str | Policy | Module,
    prompt: Sequence[int],
    answer: Sequence[int],
    model: str | Path | LoadedModel | None = None,
) -> np.ndarray:
    """Compute the KL divergence in nats, ``[len(answer)]``, of the policy's distributions from the model's own.

    Both read the same prompt at once and then the same answer token by token (teacher forcing): only the KV cache
    differs. Raises KvlabError for an empty prompt or answer, and for a policy that the model cannot be used with.
    """
    if not len(prompt) or not len(answer):
        raise RunError("a divergence needs a prompt and an answer of one token or more each")
    loaded = model if isinstance(model, LoadedModel) else models.load(model)
    parsed = Policy.parse(policy)
    check_model(loaded.model, parsed)
    own, other = (_log_probabilities(loaded, one, prompt, answer) for one in (Policy(), parsed))
    return np.array(mx.maximum((mx.exp(own) * (own - other)).sum(axis=-1), 0.0))


def _log_probabilities(loaded: LoadedModel, policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> mx.array:
    """Compute log-probabilities ``[len(answer), vocab]`` at each place of the answer."""
    caches = make_caches(loaded.model, policy, prompt_tokens=len(prompt))
    logits = [loaded.model(mx.array([list(prompt)]), cache=caches)[:, -1]]
    for token in answer[:-1]:
        logits.append(loaded.model(mx.array([[token]]), cache=caches)[:, -1])
        mx.eval(logits[-1])
    stacked = mx.concatenate(logits).astype(mx.float32)
    return stacked - mx.logsumexp(stacked, axis=-1, keepdims=True)
