"""Scorers against brute-force NumPy references of the papers' formulas."""

import mlx.core as mx
import numpy as np
import pytest

from kvlab.errors import PolicyError
from kvlab.policies import KNorm, Random, ScoreContext, SnapKV

HEADS, KV_HEADS, DIM = 4, 2, 16


def context(length: int, w: int, seed: int = 0) -> ScoreContext:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: mx.array(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    positions = mx.broadcast_to(mx.arange(length), (1, KV_HEADS, length))
    return ScoreContext(
        keys=draw(1, KV_HEADS, length, DIM),
        values=draw(1, KV_HEADS, length, DIM),
        positions=positions,
        queries=draw(1, HEADS, w, DIM) if w else None,
        scale=DIM**-0.5,
        layer=1,
        n_layers=3,
        offset=length,
    )


def top(scores: np.ndarray, keep: int) -> list[list[int]]:
    """The positions of the ``keep`` highest scores of every head."""
    return [sorted(np.argsort(-row, kind="stable")[:keep].tolist()) for row in scores]


def snapkv_by_hand(ctx: ScoreContext, window: int, kernel: int, pooling: str) -> np.ndarray:
    """The paper's listing in plain loops: softmax of the window's queries, vote, pool, per KV head."""
    keys, queries = np.array(ctx.keys[0], np.float64), np.array(ctx.queries[0], np.float64)
    length = keys.shape[1]
    group = HEADS // KV_HEADS
    out = np.full((KV_HEADS, length), np.inf)
    for head in range(KV_HEADS):
        votes = np.zeros(length - window)
        for q in range(head * group, (head + 1) * group):
            for i in range(window):
                at = length - window + i
                logits = keys[head, : at + 1] @ queries[q, i] * ctx.scale
                weights = np.exp(logits - logits.max())
                votes += (weights / weights.sum())[: length - window]
        for j in range(length - window):
            near = [votes[k] if 0 <= k < len(votes) else 0.0 for k in range(j - kernel // 2, j + kernel // 2 + 1)]
            out[head, j] = np.mean(near) if pooling == "avg" else max(near)
    return out


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize(("length", "window", "kernel"), [(40, 8, 5), (97, 16, 7), (33, 32, 1)])
def test_snapkv_keeps_what_the_papers_formula_keeps(length, window, kernel, pooling):
    ctx = context(length, window, seed=length)
    got = np.array(SnapKV(window=window, kernel=kernel, pooling=pooling).score(ctx)[0])
    want = snapkv_by_hand(ctx, window, kernel, pooling)
    for keep in (window, window + 1, window + (length - window) // 2, length):
        assert top(got, keep) == top(want, keep)


def test_snapkv_keeps_its_window_when_the_prompt_is_shorter():
    scores = np.array(SnapKV(window=32).score(context(20, 20))[0])
    assert top(scores, 5) == [[15, 16, 17, 18, 19]] * KV_HEADS


def test_knorm_keeps_the_smallest_keys():
    ctx = context(50, 0)
    norms = np.sqrt((np.array(ctx.keys[0], np.float64) ** 2).sum(-1))
    assert top(np.array(KNorm().score(ctx)[0]), 20) == top(-norms, 20)


def test_random_is_fair_and_depends_on_seed_layer_head_and_position_only():
    ctx = context(4000, 0)
    scores = np.array(Random().score(ctx)[0])
    kept = np.array(top(scores, 1000))
    assert not np.array_equal(kept[0], kept[1])
    # A fair draw of 1,000 of 4,000 puts 250 +- 14 into each quarter.
    for head in kept:
        assert all(abs(np.sum((head >= a) & (head < a + 1000)) - 250) < 70 for a in range(0, 4000, 1000))
    survivors = ScoreContext(**{**ctx.__dict__, "keys": ctx.keys[:, :, 5:9], "positions": ctx.positions[:, :, 5:9]})
    np.testing.assert_array_equal(np.array(Random().score(survivors)[0]), scores[:, 5:9])
    assert not np.array_equal(np.array(Random(seed=1).score(ctx)[0]), scores)


def test_attention_needs_queries():
    with pytest.raises(PolicyError, match="window"):
        _ = context(5, 0).attention
