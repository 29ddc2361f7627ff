"""The divergence of a policy's next-token distributions from those of the uncached model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.decoder.teacher_forcing import ForcedAnswer, distributions, divergences
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy


def divergence(
    policy: str | Policy | Module,
    prompt: Sequence[int],
    answer: Sequence[int],
    model: str | Path | LoadedModel | None = None,
) -> np.ndarray:
    """Compute the KL divergence in nats, ``[len(answer)]``, of the policy's distributions from the model's own.

    Both read the same prompt and then the same answer token by token (teacher forcing): only the KV cache differs. For
    many prompts, with intervals, use the workloads ``kl`` and ``tools``. Raises KvlabError for an empty prompt or
    answer, and for a policy that the model cannot be used with.
    """
    forced = [ForcedAnswer(tuple(prompt), tuple(answer))]
    loaded = model if isinstance(model, LoadedModel) else models.load(model)
    with Decoder(loaded) as decoder:
        own = distributions(decoder, forced)
    with Decoder(loaded, Policy.parse(policy)) as decoder:
        return divergences(decoder, forced, own)[0].kl
