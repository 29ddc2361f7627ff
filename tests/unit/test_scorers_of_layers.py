"""Scorers that read the model's RoPE or output projection, against NumPy references in float64 loops."""

import dataclasses
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kvlab.caches.model_layers import model_layers, rotates_back
from kvlab.errors import PolicyError
from kvlab.policies import DMS, CriticalKV, Expected, KNorm, Policy, Scorer, SnapKV
from kvlab.policies.scorers.expected import expected_logits
from kvlab.policies.scorers.model_layer import LayerContext, ModelLayer, without_rope
from tests.unit.test_scorer_formulas import DIM, DTYPES, GROUP, HEADS, KV_HEADS, filled, make_context, numbers

BASE = 100.0
HIDDEN = 24
ROPE = nn.RoPE(DIM, base=BASE)
YARN_FACTOR = 1.3


def make_layer_context(length: int, queries: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> LayerContext:
    made = make_context(length, queries, seed, dtype)
    weight = mx.array(np.random.default_rng(seed + 1).normal(size=(HEADS * DIM, HIDDEN)).astype(np.float32))
    return LayerContext(**made.__dict__, model_layer=ModelLayer(ROPE, lambda: weight.astype(dtype)))


def rotation(position: float) -> np.ndarray:
    """The matrix of RoPE at a position: ``rotation(p) @ x``; channel j turns with channel j + DIM / 2."""
    half = DIM // 2
    out = np.zeros((DIM, DIM))
    for j in range(half):
        angle = position * BASE ** (-j / half)
        out[j, j] = out[j + half, j + half] = np.cos(angle)
        out[j, j + half], out[j + half, j] = -np.sin(angle), np.sin(angle)
    return out


def expected_by_hand(ctx: LayerContext, sinks: int, future: int, epsilon: float, value_norm: bool) -> np.ndarray:
    """Scores of the rows behind the sinks, query by query and row by row."""
    keys, values, queries = numbers(ctx.keys[0]), numbers(ctx.values[0]), numbers(ctx.queries[0])
    length, count = keys.shape[1], queries.shape[1]
    mean_rotation = np.mean([rotation(length + i) for i in range(future)], axis=0)
    out = np.zeros((KV_HEADS, length))
    for head in range(HEADS):
        before = [
            rotation(-at) @ queries[head, at - (length - count)] for at in range(length - count, length) if at >= sinks
        ]
        mean = mean_rotation @ np.mean(before, axis=0)
        covariance = mean_rotation @ np.cov(np.array(before).T, bias=True) @ mean_rotation.T
        logits = np.array(
            [ctx.scale * (mean @ k) + ctx.scale**2 * (k @ covariance @ k) / 2 for k in keys[head // GROUP, sinks:]]
        )
        weights = np.exp(logits - logits.max())
        out[head // GROUP, sinks:] += weights / weights.sum() / GROUP
    if value_norm:
        out = (out + epsilon) * np.linalg.norm(values, axis=-1)
    return out


@pytest.mark.parametrize(
    ("length", "window", "sinks", "future", "epsilon", "value_norm"),
    [(57, 32, 4, 512, 0.0, True), (40, 40, 4, 20, 1e-2, True), (33, 33, 0, 1, 0.0, False), (9, 9, 4, 64, 0.0, True)],
)
@DTYPES
def test_expected_is_the_mean_weight_of_normal_queries_at_the_next_positions(
    length, window, sinks, future, epsilon, value_norm, dtype
):
    ctx = make_layer_context(length, window, dtype, seed=length)
    scorer = Expected(window=window, sinks=sinks, future=future, epsilon=epsilon, value_norm=value_norm)
    scores = np.array(scorer.score(ctx)[0])
    want = expected_by_hand(ctx, sinks, future, epsilon, value_norm)
    np.testing.assert_allclose(scores[:, sinks:], want[:, sinks:], rtol=2e-3, atol=1e-6)
    if sinks:
        assert scores[:, :sinks].min() > scores[:, sinks:].max()


def test_expected_takes_the_weight_that_many_normal_queries_pay():
    """The formula is the mean of exp(q k) over normal queries, which draws of such queries come near to."""
    rng = np.random.default_rng(3)
    mean, factor, key = rng.normal(size=DIM) * 0.3, rng.normal(size=(DIM, DIM)) * 0.2, rng.normal(size=DIM)
    draws = np.exp(0.25 * (mean + rng.normal(size=(400_000, DIM)) @ factor.T) @ key)
    inputs = (key[None, None, None], mean[None], (factor @ factor.T)[None])
    [logit] = np.array(expected_logits(*(mx.array(one.astype(np.float32)) for one in inputs), 0.25)).ravel()
    np.testing.assert_allclose(draws.mean(), np.exp(logit), rtol=0.005)


@pytest.mark.parametrize("filling", [1, 8, 30])
def test_filling_in_front_of_a_head_changes_no_score_of_expected(filling):
    ctx, scorer = make_layer_context(61, 16), Expected(window=16, sinks=0)
    kept = 61 - filling
    alone = dataclasses.replace(
        ctx, keys=ctx.keys[:, :, :kept], values=ctx.values[:, :, :kept], positions=ctx.positions[:, :, :kept]
    )
    scores = np.array(scorer.score(filled(ctx, filling)))[0]
    np.testing.assert_allclose(scores[0, filling:], np.array(scorer.score(alone))[0, 0], rtol=1e-4)
    np.testing.assert_allclose(scores[1], np.array(scorer.score(ctx))[0, 1], rtol=1e-4)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("length", [1, 3, 4])
def test_expected_of_a_prompt_of_sinks_only_is_a_number(length):
    assert np.isfinite(np.array(Expected(window=8).score(make_layer_context(length, length)))).all()


# -- RoPE -------------------------------------------------------------------------------------------------------------


class Yarn(nn.Module):
    """A RoPE that multiplies by a factor too."""

    def __call__(self, x, offset=0):
        return ROPE(x * YARN_FACTOR, offset=offset)


class Dynamic(nn.Module):
    """A RoPE whose frequencies depend on the length."""

    def __call__(self, x, offset=0):
        return mx.fast.rope(x, DIM, traditional=False, base=100.0 * max(1, offset), scale=1.0, offset=offset)


@pytest.mark.parametrize("rope", [ROPE, nn.RoPE(DIM, traditional=True), nn.RoPE(DIM // 2), Yarn()])
def test_rows_are_rotated_back_from_positions_in_any_order(rope):
    rows = mx.random.normal((1, 2, 5, DIM), key=mx.random.key(1))
    positions = mx.array([[[3, 9, 1, 0, 700], [5, 4, 3, 2, 1]]], mx.int32)
    moved = mx.stack(
        [
            mx.stack([rope(rows[:, h : h + 1, i : i + 1], offset=positions[0, h, i].item())[0, 0, 0] for i in range(5)])
            for h in range(2)
        ]
    )[None]
    np.testing.assert_allclose(np.array(without_rope(rope, moved, positions)), np.array(rows), atol=1e-4)
    assert rotates_back(rope)


def test_a_rope_that_depends_on_the_length_is_not_taken():
    assert not rotates_back(Dynamic())


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_output_projection_is_found_dequantized(make_model, bits):
    model = make_model("llama").model
    layer = model.layers[0]
    plain = np.array(layer.self_attn.o_proj.weight)
    if bits:
        projection = nn.QuantizedLinear.from_linear(layer.self_attn.o_proj, 32, bits)
        layer = type("Layer", (nn.Module,), {})()
        layer.attention = type("Attention", (nn.Module,), {})()
        layer.attention.rope, layer.attention.o_proj = ROPE, projection
        model = type("Model", (nn.Module,), {})()
        model.layers = [layer]
    found = model_layers(model)[0]
    assert found.rope is not None
    # The largest step between two codes of a group.
    np.testing.assert_allclose(
        np.array(found.output_weight()), plain.T, atol=0 if not bits else np.ptp(plain) / 2**bits
    )


def test_what_the_cache_does_not_hand_over_is_said():
    with pytest.raises(PolicyError, match="RoPE.*such as keydiff"):
        Expected(window=8).score(make_context(20, 8))
    with pytest.raises(PolicyError, match="output projection.*in its parentheses alone"):
        CriticalKV(scorer=SnapKV(window=8)).score(make_context(20, 8))


# -- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "first"), [(20, 0.5), (0.3, 0.5), (20, 0.0), (10, 1.0), (9, 0.01)])
@DTYPES
def test_criticalkv_gives_the_rest_of_the_budget_by_the_output_of_values(budget, first, dtype):
    ctx = make_layer_context(70, 8, dtype)
    inner = SnapKV(window=8)
    scores = np.array(CriticalKV(scorer=inner, budget=budget, first=first, epsilon=1e-3).score(ctx)[0])
    plain = np.array(inner.score(ctx)[0]).astype(np.float64)
    weight = numbers(ctx.model_layer.output_weight()).reshape(HEADS, DIM, HIDDEN)
    rows = budget if budget > 1 else round(budget * 70)
    own = max(1, int(rows * first)) if first else 0
    for head in range(KV_HEADS):
        norms = np.zeros(70)
        for row, value in enumerate(numbers(ctx.values[0, head])):
            norms[row] = np.mean([np.abs(value @ one).sum() for one in weight[head * GROUP : (head + 1) * GROUP]])
        want = (plain[head] + 1e-3) * norms
        best = np.argsort(-plain[head], kind="stable")[:own]
        want[best] = np.inf
        np.testing.assert_allclose(scores[head], want, rtol=1e-3)


def test_of_rows_with_equal_scores_criticalkv_takes_the_newest_first():
    ctx = make_layer_context(12, 0)
    equal = dataclasses.replace(ctx, keys=mx.ones_like(ctx.keys))

    @dataclasses.dataclass(frozen=True)
    class Same(Scorer):
        name: ClassVar[str] = "same-of-test"

        def score(self, context):
            return mx.ones(context.positions.shape)

    scores = np.array(CriticalKV(scorer=Same(), budget=6).score(equal)[0])
    np.testing.assert_array_equal(np.isinf(scores), np.tile(np.arange(12) >= 9, (KV_HEADS, 1)))


def test_dms_keeps_rows_above_the_threshold_and_the_latest():
    ctx = make_layer_context(60, 0)
    norms = np.linalg.norm(numbers(ctx.keys[0]), axis=-1)
    threshold = -float(np.median(norms))
    scorer = DMS(scorer=KNorm(), threshold=threshold, recent=10)
    scores = scorer.score(ctx)
    stays = (-norms >= threshold) | (np.arange(60) >= 50)
    assert list(scorer.targets(scores, 5)) == stays.sum(axis=1).tolist()
    for head, count in enumerate(stays.sum(axis=1)):
        best = np.argsort(-np.array(scores[0, head]), kind="stable")[:count]
        assert set(best.tolist()) == set(np.flatnonzero(stays[head]).tolist())


def test_dms_keeps_one_row_where_none_is_above_the_threshold():
    scorer = DMS(scorer=KNorm(), threshold=1e9, recent=0)
    assert list(scorer.targets(scorer.score(make_layer_context(9, 0)), 4)) == [1, 1]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("expected:window=0", "1 or more"),
        ("expected:future=0", "1 or more"),
        ("expected:sinks=-1", "write sinks=0"),
        ("expected:epsilon=-0.5", "write epsilon=0"),
        ("criticalkv(keydiff)", "criticalkv(snapkv)"),
        ("criticalkv(criticalkv(snapkv))", "weighs values already: write criticalkv alone"),
        ("criticalkv(adakv(expected))", "write adakv(criticalkv(expected))"),
        ("criticalkv:first=2", "first=0.5"),
        ("criticalkv:epsilon=-1", "write epsilon=0"),
        ("criticalkv(snapkv:budget=0.2):budget=0.4", "write one"),
        ("dms(adakv):threshold=1", "write adakv alone"),
        ("dms(knorm):threshold=1,recent=-1", "write recent=0"),
        ("dms(knorm:budget=0.2):threshold=1", "write dms(knorm):threshold=VALUE"),
    ],
)
def test_wrong_parameters_say_what_to_write(spec, words):
    with pytest.raises(PolicyError) as error:
        Policy.parse(spec)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_dms_without_a_threshold_says_what_to_write():
    with pytest.raises(PolicyError, match=r"dms\(knorm\):threshold=VALUE"):
        DMS(scorer=KNorm()).targets(mx.zeros((1, KV_HEADS, 9)), 4)
