"""Quantized forms of small models, made by mlx-lm's own converter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_map_with_path
from mlx_lm.utils import quantize_model, save_model


def quantize_folder(
    source: Path, target: Path, group: int, bits: int, *, mode: str = "affine", head: Any = None, only: str = ""
) -> Path:
    """Write the model of ``source`` to ``target`` in ``bits``.

    Args:
        head: dtype of the output head, which then stays as it is.
        only: a part of the names of the layers to quantize; empty: all.
    """
    network, _, config = mlx_lm.load(str(source), return_config=True)

    def wanted(path: str, _: Any) -> bool:
        return only in path and not (head is not None and "lm_head" in path)

    network, config = quantize_model(network, config, group, bits, mode=mode, quant_predicate=wanted)
    if head is not None:
        network.update(
            tree_map_with_path(
                lambda path, array: array.astype(head) if "lm_head" in path else array, network.parameters()
            )
        )
    mx.eval(network.parameters())
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    save_model(target, network)
    (target / "config.json").write_text(json.dumps(config))
    return target
