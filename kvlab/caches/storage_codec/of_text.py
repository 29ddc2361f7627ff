"""Fit a model's transform to text of the kind that will be stored."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.nn as nn

from kvlab.caches.storage_codec.fitting import FEWEST_TOKENS, fitted
from kvlab.caches.storage_codec.samples import KVSamples
from kvlab.caches.storage_codec.transform import KVTransform
from kvlab.counts import counted
from kvlab.errors import ModelError

PROMPT_TOKENS = 1024
"""Tokens of a prompt of samples: keys and values of later tokens are like those of earlier ones."""


def transform_of_text(
    model: nn.Module, tokens: Sequence[int], *, k_step: float, v_step: float, most_tokens: int
) -> KVTransform:
    """Return the transform of a model, from keys and values of the first ``most_tokens`` of a text.

    Steps are those of :func:`kvlab.caches.storage_codec.fitted`. Raises ModelError for a text that is too short, steps
    of 0 or less, or a model whose layers kvlab cannot sample.
    """
    tokens = list(tokens[:most_tokens])
    if len(tokens) < FEWEST_TOKENS:
        raise ModelError(
            f"the text has {counted(len(tokens), 'token')}, which are too few to fit a transform: give {FEWEST_TOKENS} "
            "or more, and better some thousand"
        )
    prompts = [tokens[at : at + PROMPT_TOKENS] for at in range(0, len(tokens), PROMPT_TOKENS)]
    return fitted(KVSamples.of(model, prompts), k_step, v_step)
