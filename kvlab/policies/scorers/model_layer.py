"""``LayerContext``: what a scorer sees of a layer, with the parts of the model's attention that some methods read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext


@dataclass(frozen=True)
class ModelLayer:
    """Parts of the attention module of one layer; None is a part that the model has not, or not in a known form.

    Attributes:
        rope: rotates ``[batch, heads, n, head_dim]`` to positions ``offset`` to ``offset + n - 1``, called as
            ``rope(x, offset=offset)``; an offset below 0 rotates back.
        output_weight: returns the output projection, ``[n_heads * v_head_dim, hidden]``, dequantized.
    """

    rope: Callable[..., mx.array] | None = None
    output_weight: Callable[[], mx.array] | None = None


@dataclass(frozen=True)
class LayerContext(ScoreContext):
    """Inputs of a scorer that reads parts of the model: those of every scorer, and ``model_layer``."""

    model_layer: ModelLayer = ModelLayer()


def rope_of(context: ScoreContext, name: str) -> Callable[..., mx.array]:
    """Return the RoPE of the context's layer. Raises PolicyError, naming the scorer, where it is not known."""
    rope = context.model_layer.rope if isinstance(context, LayerContext) else None
    if rope is None:
        raise PolicyError(
            f"{name} rotates queries and keys by the model's RoPE, and kvlab finds none in layer {context.layer} of "
            "this model: write another scorer, such as keydiff"
        )
    return rope


def output_weight_of(context: ScoreContext, name: str) -> mx.array:
    """Return the output projection by heads, float32 ``[n_kv_heads, group, v_head_dim, hidden]``.

    Raises PolicyError, naming the scorer, where it is not known.
    """
    read = context.model_layer.output_weight if isinstance(context, LayerContext) else None
    weight = None if read is None else read()
    _, kv_heads, _, width = context.values.shape
    if weight is None or weight.shape[0] % (kv_heads * width):
        raise PolicyError(
            f"{name} reads the model's output projection, and kvlab finds none in layer {context.layer} of this model: "
            "write the scorer in its parentheses alone"
        )
    return weight.astype(mx.float32).reshape(kv_heads, -1, width, weight.shape[1])


def without_rope(rope: Callable[..., mx.array], rows: mx.array, positions: mx.array) -> mx.array:
    """Return ``rows`` ``[1, heads, n, head_dim]`` as they were before RoPE, in float32.

    Positions are int32 ``[1, heads, n]``, in any order; rows at negative ones are given back rotated to nowhere in
    particular. A factor that some RoPEs multiply with (YaRN's) is taken out.
    """
    _, heads, count, width = rows.shape
    flat = rows.astype(mx.float32).reshape(heads * count, 1, 1, width)
    back = rope(flat, offset=-positions.reshape(-1).astype(mx.int32))
    factor = rope(mx.ones((1, 1, 1, width)), offset=0)
    return (back / (factor * factor)).reshape(rows.shape)


def pairs_of(rope: Callable[..., mx.array], width: int) -> tuple[mx.array, mx.array]:
    """Return which channels RoPE turns together, and what each counts in a sum over pairs.

    The first is float32 ``[width, width]``: ``squares @ pairs`` gives each channel the sum over its pair. The second is
    ``[width]``: one half for channels that are turned, which a pair has two of, and 0 for those that are not.
    """
    moved = mx.abs(rope(mx.eye(width)[:, None, None], offset=1)[:, 0, 0]) > 0
    pairs = (moved | mx.eye(width).astype(mx.bool_)).astype(mx.float32)
    return pairs, mx.where(pairs.sum(axis=0) > 1, 0.5, 0.0)
