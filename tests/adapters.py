"""Adapters of small models, written as ``mlx_lm.lora`` writes them, with weights that change what is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten

from tests.model_changes import LORA, add_adapter

KINDS = ("lora", "dora", "full")


def write_adapter(model: Path, folder: Path, kind: str = "lora", *, seed: int = 1, **config: Any) -> Path:
    """Write an adapter of a ``kind`` for the model in ``model``; ``config`` replaces what its config says."""
    network, _ = mlx_lm.load(str(model))
    network.freeze()
    if kind == "full":
        network.layers[-1].mlp.unfreeze()
        network.update({"model": {"layers": [{}, {"mlp": _scaled(network.layers[-1].mlp.parameters())}]}})
    else:
        add_adapter(network, dora=kind == "dora", seed=seed)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(network.trainable_parameters())))
    said = {
        "fine_tune_type": kind,
        "num_layers": len(network.layers),
        "lora_parameters": None if kind == "full" else LORA,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def _scaled(tree: Any) -> Any:
    return {name: {"weight": layer["weight"] * 1.5} for name, layer in tree.items()}
