"""Adapters: what ``mlx_lm.lora`` writes when it fine-tunes a model (LoRA, DoRA, or whole weights)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from kvlab.errors import ModelError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"


def adapter_folder(adapter: str | Path) -> Path:
    """Return the absolute path of an adapter's folder. Raises ModelError where it is none that mlx-lm reads."""
    folder = Path(adapter).expanduser()
    wanted = f"give the folder with {CONFIG_FILE} and {WEIGHTS_FILE} that mlx_lm.lora writes"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ModelError(f"the adapter {str(adapter)!r} {what}; {wanted}")
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        other = "; it is in the format of PEFT" if (folder / "adapter_model.safetensors").exists() else ""
        raise ModelError(f"the adapter {str(adapter)!r} has no {' and no '.join(missing)}{other}; {wanted}")
    _config(folder)
    return folder.resolve()


def apply_adapter(network: nn.Module, folder: Path) -> None:
    """Add the layers of an adapter to a model, in place; weights may still be unread, and quantized.

    Raises ModelError where the adapter does not belong to this model.
    """
    from mlx_lm.tuner.utils import load_adapters

    config = _config(folder)
    try:
        load_adapters(network, str(folder))
        weights: Any = mx.load(str(folder / WEIGHTS_FILE))
    except KeyError as error:
        raise ModelError(
            f"{folder / CONFIG_FILE} lacks {error} in lora_parameters; write it as mlx_lm.lora does"
        ) from error
    except Exception as error:  # mlx-lm and safetensors raise nearly everything
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise ModelError(f"the adapter in {folder} does not fit this model: {lines[min(1, len(lines) - 1)]}") from error
    if config.get("fine_tune_type") != "full":
        _clear_unwritten(network, set(weights))
    network.eval()


def _clear_unwritten(network: nn.Module, given: set[str]) -> None:
    """Set layers that the file has no weights for to zero: mlx-lm draws them at random, multiplied by zero."""
    parameters: Any = tree_flatten(network.parameters())
    left = [
        (name, mx.zeros_like(array)) for name, array in parameters if name.endswith(".lora_a") and name not in given
    ]
    network.load_weights(left, strict=False)


def _config(folder: Path) -> dict[str, Any]:
    """The adapter's config. Raises ModelError where it cannot be read, or says too little."""
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} is no JSON file ({error}); write it as mlx_lm.lora does") from error
    if not isinstance(config, dict) or (config.get("fine_tune_type", "lora") != "full" and not _says_layers(config)):
        raise ModelError(f"{file} has no num_layers and lora_parameters; write it as mlx_lm.lora does")
    return config


def _says_layers(config: dict[str, Any]) -> bool:
    return isinstance(config.get("num_layers"), int) and isinstance(config.get("lora_parameters"), dict)
