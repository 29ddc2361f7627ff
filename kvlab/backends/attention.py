"""Attention of several queries over runs of rows: prefixes that others share, then the sequence's own rows."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from kvlab.backends.x86.flash_attention import Segment, are_quicker, partial_attention


def segmented_attention(
    queries: mx.array,
    runs: Sequence[Segment],
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """Attention ``[1, n_heads, n, v_head_dim]`` of the newest ``n`` queries over rows in ``runs``.

    On x86 CPUs, where MLX's softmax is scalar, it is computed at once by :mod:`kvlab.backends.x86.flash_attention`.

    Args:
        queries: ``[1, n_heads, n, head_dim]``.
        runs: keys and values ``[1, n_kv_heads, length, head_dim]``, one run behind the other; the last holds the
            queries' own rows.
        mask: what of the last run is visible: ``"causal"``, bool ``[1, 1, n, length]``, or None for all of it.
            Earlier runs are visible throughout.
        sinks: ``[n_heads]``, joining the denominator.
    """
    _, heads, count, dim = queries.shape
    if count == 1 or not are_quicker() or queries.dtype != mx.float32:
        keys, values = (
            run[0] if len(run) == 1 else mx.concatenate(list(run), axis=2) for run in zip(*runs, strict=True)
        )
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    kv_heads = runs[-1][0].shape[1]
    grouped = (queries * scale).reshape(kv_heads, heads // kv_heads, count, dim).swapaxes(1, 2)
    got = partial_attention(grouped, runs, np.asarray(mask)[0, 0] if isinstance(mask, mx.array) else mask)
    total = got.total
    if sinks is not None:
        total = total + np.exp(np.asarray(sinks, np.float32).reshape(kv_heads, 1, -1, 1) - got.top)
    return mx.array(got.out / total).swapaxes(1, 2).reshape(1, heads, count, -1)
