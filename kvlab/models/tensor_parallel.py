"""Tensor parallelism: every rank of an MLX group computes a part of each layer of one model.

MLX's ``mlx.launch`` starts the ranks; mlx-lm's models say how their layers are split (``model.shard``).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import (
    AllToShardedLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
    ShardedToAllLinear,
)

from kvlab.errors import ModelError

SPLIT_LAYERS = (AllToShardedLinear, QuantizedAllToShardedLinear, QuantizedShardedToAllLinear, ShardedToAllLinear)
HEAD_COUNTS = ("num_attention_heads", "num_key_value_heads")
"""Numbers of a model's configuration of which each rank gets an equal part."""


def split_over_ranks(network: nn.Module, name: str) -> None:
    """Leave of each layer the part of this rank, where ``mlx.launch`` started several; a single rank keeps all.

    Raises ModelError for a model that mlx-lm cannot split, or not into so many parts.
    """
    group = mx.distributed.init()
    if group.size() == 1:
        return
    shard = getattr(network, "shard", None)
    if shard is None:
        raise ModelError(f"{name} cannot be split over {group.size()} ranks: mlx-lm's {_kind(network)} has no `shard`")
    for count in HEAD_COUNTS:
        heads = getattr(getattr(network, "args", None), count, None)
        if heads is not None and heads % group.size():
            raise ModelError(f"{name} cannot be split over {group.size()} ranks: {count}={heads} is not a multiple")
    try:
        shard(group)
    except ValueError as error:  # of widths and of quantization groups
        raise ModelError(f"{name} cannot be split over {group.size()} ranks: {error}") from error


def group_of(network: nn.Module) -> Any | None:
    """Return the MLX group of several ranks over which a model is split; None where it is whole.

    Raises ModelError for a model of which each rank has other layers (mlx-lm's ``pipeline``).
    """
    for module in network.modules():
        if getattr(module, "pipeline_size", 1) > 1:
            raise ModelError("the layers of this model are on several ranks (pipeline); split each layer: model.shard")
        if isinstance(module, SPLIT_LAYERS) and module.group.size() > 1:
            return module.group
    return None


def _kind(network: nn.Module) -> str:
    return str(getattr(network, "model_type", type(network).__name__))
