"""Small random-weight models whose rotary embeddings are scaled, as those of long contexts are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.architectures import RECIPES, Recipe

ARCHITECTURES = ("llama", "qwen3", "gpt-oss", "deepseek-v3")
_ORIGINAL = 4096
_FREQUENCIES = {"llama": 32, "qwen3": 32, "gpt-oss": 32, "deepseek-v3": 8}
"""Half the width that is rotated."""


def scaling(rope_type: str, frequencies: int) -> dict[str, Any]:
    """The ``rope_scaling`` of a model's config for one way of scaling."""
    common = {"rope_type": rope_type, "factor": 8.0, "original_max_position_embeddings": _ORIGINAL}
    return common | {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {"beta_fast": 32.0, "beta_slow": 1.0},
        "longrope": {"short_factor": [1.0] * frequencies, "long_factor": [1.0 + i for i in range(frequencies)]},
    }[rope_type]  # fmt: skip


UNSUPPORTED = {("gpt-oss", "longrope"): "mlx-lm's gpt-oss hands longrope no context length, and so cannot be built"}
ROPE_TYPES = ("llama3", "yarn", "longrope")


def scaled_recipe(architecture: str, rope_type: str) -> Recipe:
    """The recipe of ``architecture`` with scaled rotary embeddings."""
    recipe = RECIPES[architecture]
    return replace(recipe, config=recipe.config | {"rope_scaling": scaling(rope_type, _FREQUENCIES[architecture])})
