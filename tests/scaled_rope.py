"""Small random-weight models whose rotary embeddings are scaled, as those of long contexts are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.architectures import RECIPES, WINDOW, Recipe

_WINDOWED = {
    "num_hidden_layers": 2,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_RECIPES = {
    **{name: RECIPES[name] for name in ("llama", "qwen3", "gpt-oss", "deepseek-v3", "gemma3")},
    "olmo3": Recipe("olmo3", _WINDOWED, stateful=True),
    "exaone4": Recipe("exaone4", {**_WINDOWED, "sliding_window_pattern": "LG"}, stateful=True),
}
ARCHITECTURES = tuple(_RECIPES)
_ORIGINAL = 4096
_FREQUENCIES = {name: 8 if name == "deepseek-v3" else 32 for name in ARCHITECTURES}
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
    recipe = _RECIPES[architecture]
    return replace(recipe, config=recipe.config | {"rope_scaling": scaling(rope_type, _FREQUENCIES[architecture])})
