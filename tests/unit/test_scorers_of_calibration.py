"""Compactor, TriAttention and scorers of saved scores against NumPy references in float64 loops."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kvlab.errors import PolicyError
from kvlab.policies import Compactor, KVzip, Oracle, Policy, TriAttention
from kvlab.policies.scorers.model_layer import pairs_of
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.policies.scorers.triattention import DISTANCES, save_centres
from tests.unit.test_scorer_formulas import DIM, DTYPES, GROUP, HEADS, KV_HEADS, make_context, numbers
from tests.unit.test_scorers_of_layers import make_layer_context, rotation

LENGTH = 70


def standardized(scores: np.ndarray, ddof: int) -> np.ndarray:
    return (scores - scores.mean()) / scores.std(ddof=ddof)


# -- compactor --------------------------------------------------------------------------------------------------------


def leverage_by_hand(ctx, first: int, last: int, sketch: int) -> np.ndarray:
    draws = np.random.default_rng([0, ctx.layer]).standard_normal((KV_HEADS, DIM, sketch)) / sketch**0.5
    out = []
    for head in range(KV_HEADS):
        keys = np.array([rotation(-at) @ numbers(ctx.keys[0, head, at]) for at in range(first, last)])
        x = (keys - keys.mean(axis=0)) @ draws[head]
        out.append(np.diag(x @ np.linalg.inv(x.T @ x + 1e-2 * np.eye(sketch)) @ x.T))
    return np.array(out)


def attention_by_hand(ctx, first: int, last: int, chunk: int) -> np.ndarray:
    keys, values, queries = numbers(ctx.keys[0]), numbers(ctx.values[0]), numbers(ctx.queries[0])
    sums = np.zeros((KV_HEADS, LENGTH))
    for head in range(HEADS):
        for start in range(first, last, chunk):
            rows = range(start, min(start + chunk, last))
            for query in rows:
                weights = np.exp([queries[head, query] @ keys[head // GROUP, row] for row in rows])
                sums[head // GROUP, rows] += weights / weights.sum() / GROUP
    seen = (sums * np.linalg.norm(values, axis=-1))[:, first:last]
    return np.array([np.convolve(head, [1 / 3] * 3, mode="same") for head in seen])


@pytest.mark.parametrize(("sinks", "latest", "chunk", "sketch"), [(8, 4, 29, 6), (8, 4, 256, 6), (0, 0, 20, 3)])
@DTYPES
def test_compactor_adds_leverage_and_the_attention_within_chunks(sinks, latest, chunk, sketch, dtype):
    ctx = make_layer_context(LENGTH, LENGTH, dtype)
    scorer = Compactor(sinks=sinks, latest=latest, chunk=chunk, sketch=sketch, blending=0.4)
    scores = np.array(scorer.score(ctx)[0])
    last = LENGTH - latest
    want = 0.4 * standardized(leverage_by_hand(ctx, sinks, last, sketch), 1)
    want = want + standardized(attention_by_hand(ctx, sinks, last, chunk), 1)
    np.testing.assert_allclose(scores[:, sinks:last], want, rtol=1e-2, atol=2e-3)
    assert np.isinf(scores[:, :sinks]).all() and np.isinf(scores[:, last:]).all()


def test_compactor_weighs_leverage_by_the_share_that_leaves():
    ctx = make_layer_context(LENGTH, LENGTH)
    given, default = (Compactor(budget=0.25, blending=share).score(ctx) for share in (1 - round(0.25 * 70) / 70, None))
    np.testing.assert_allclose(np.array(given), np.array(default), rtol=1e-5)


@pytest.mark.parametrize("queries", [0, 5])
def test_compactor_without_all_queries_ranks_by_leverage_alone(queries):
    ctx = make_layer_context(LENGTH, queries)
    scores = np.array(Compactor(sinks=3, latest=2, sketch=6, blending=1.0).score(ctx)[0])
    want = standardized(leverage_by_hand(ctx, 3, LENGTH - 2, 6), 1)
    np.testing.assert_allclose(scores[:, 3:-2], want, rtol=1e-3, atol=1e-4)


def test_compactor_of_no_more_rows_than_directions_keeps_the_newest():
    few, more = (Compactor(sinks=2, latest=1, sketch=sketch) for sketch in (20, 12))
    ctx = make_layer_context(23, 0)
    assert (np.array(few.score(ctx)[0, :, 2:-1]) == 0).all()
    assert np.ptp(np.array(more.score(ctx)[0, :, 2:-1])) > 0


@pytest.mark.parametrize("length", [1, 5, 12, 13, 14])
def test_compactor_of_a_short_prompt_is_a_number(length):
    assert not np.isnan(np.array(Compactor().score(make_layer_context(length, length)))).any()


# -- triattention -----------------------------------------------------------------------------------------------------


@pytest.fixture
def calibration(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    centre = rng.normal(size=(HEADS, DIM)).astype(np.float32)
    # The mean of lengths is no less than the length of the mean.
    least = np.hypot(centre[:, : DIM // 2], centre[:, DIM // 2 :])
    size = (least + np.abs(rng.normal(size=least.shape))).astype(np.float32)
    path = tmp_path / "centres.npz"
    save_centres(path, [None, (centre, np.tile(size, 2))])
    return path, centre, size


@DTYPES
def test_triattention_is_the_series_of_cosines_over_the_distances_ahead(calibration, dtype):
    path, centre, size = calibration
    ctx = make_layer_context(LENGTH, 0, dtype)
    want = np.zeros((HEADS, LENGTH))
    half = DIM // 2
    for head in range(HEADS):
        q = centre[head, :half] + 1j * centre[head, half:]
        for row in range(LENGTH):
            key = rotation(-row) @ numbers(ctx.keys[0, head // GROUP, row])
            k = key[:half] + 1j * key[half:]
            turns = 100.0 ** (-np.arange(half) / half)
            series = [
                (np.abs(q) * np.abs(k) * np.cos(turns * (LENGTH + d - row) + np.angle(q) - np.angle(k))).sum()
                for d in DISTANCES
            ]
            want[head, row] = np.mean(series) + ((size[head] - np.abs(q)) * np.abs(k)).sum()
    each = np.array([standardized(one, 0) for one in want]).reshape(KV_HEADS, GROUP, LENGTH).max(axis=1)
    scores = np.array(TriAttention(calibration=str(path), prefix=0, segments=1).score(ctx)[0])
    np.testing.assert_allclose(scores, each, rtol=2e-2, atol=5e-3)


def test_triattention_keeps_the_prefix_and_the_best_rows_of_each_segment(calibration):
    path, _, _ = calibration
    ctx = make_layer_context(LENGTH, 0)
    plain = np.array(TriAttention(calibration=str(path), prefix=0, segments=1).score(ctx)[0])
    scorer = TriAttention(calibration=str(path), budget=30, prefix=10, segments=4, quota=0.6)
    kept = np.argsort(-np.array(scorer.score(ctx)[0]), axis=1, kind="stable")[:, :30]
    for head in range(KV_HEADS):
        assert set(range(10)) <= set(kept[head].tolist())
        for start in range(10, LENGTH, 15):
            best = start + np.argsort(-plain[head, start : start + 15])[:3]  # 0.6 of a fourth of 20 rows
            assert set(best.tolist()) <= set(kept[head].tolist())


def test_triattention_says_what_its_calibration_lacks(calibration, tmp_path):
    path, _, _ = calibration
    ctx = make_layer_context(9, 0)
    with pytest.raises(PolicyError, match="calibration=FILE"):
        TriAttention().score(ctx)
    with pytest.raises(PolicyError, match="cannot read"):
        TriAttention(calibration=str(tmp_path / "missing.npz")).score(ctx)
    with pytest.raises(PolicyError, match="layer 2.*another model"):
        TriAttention(calibration=str(path)).score(dataclasses.replace(ctx, layer=2))


# -- saved scores -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    rng = np.random.default_rng(8)
    layers = [rng.random((KV_HEADS, LENGTH)).astype(np.float32) ** power for power in (1, 3)]
    path = tmp_path / "scores.npz"
    save_scores(path, range(LENGTH), layers)
    return path, layers


def with_ids(length: int, first: int = 0):
    ids = mx.broadcast_to(mx.arange(first, first + length), (1, KV_HEADS, length)).astype(mx.int32)
    return dataclasses.replace(make_context(length), token_ids=ids)


def test_saved_scores_are_read_by_position_and_answers_rank_above(saved):
    path, layers = saved
    ctx = with_ids(LENGTH + 5)
    gone = np.setdiff1d(np.arange(LENGTH + 5), [3, 9])
    held = dataclasses.replace(
        ctx,
        keys=ctx.keys[:, :, : len(gone)],
        **{name: getattr(ctx, name)[:, :, mx.array(gone)] for name in ("positions", "token_ids")},
    )
    scores = np.array(Oracle(scores=str(path)).score(held)[0])
    np.testing.assert_array_equal(scores[:, : LENGTH - 2], layers[1][:, gone[: LENGTH - 2]])
    assert np.isinf(scores[:, LENGTH - 2 :]).all()


def test_saved_scores_of_another_prompt_or_model_are_refused(saved, tmp_path):
    path, _ = saved
    with pytest.raises(PolicyError, match="another prompt"):
        Oracle(scores=str(path)).score(with_ids(LENGTH, 1))
    with pytest.raises(PolicyError, match="layer 4"):
        Oracle(scores=str(path)).score(dataclasses.replace(with_ids(LENGTH), layer=4))
    with pytest.raises(PolicyError, match="oracle:scores=FILE"):
        Oracle().score(with_ids(LENGTH))
    with pytest.raises(PolicyError, match="cannot read"):
        KVzip(scores=str(tmp_path / "none.npz")).score(with_ids(LENGTH))


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_kvzip_keeps_the_best_rows_of_all_layers_and_the_sinks(saved, budget):
    path, layers = saved
    scorer = KVzip(scores=str(path), budget=budget)
    everything = np.sort(np.concatenate([one[:, 4:].ravel() for one in layers]))[::-1]
    least = everything[2 * KV_HEADS * (round(budget * LENGTH) - 4) - 1]
    for layer, table in enumerate(layers):
        rows = scorer.rows(LENGTH, layer, 2)
        stays = (table[:, 4:] >= least).sum() / KV_HEADS + 4
        assert abs(rows - stays) <= 0.5
        targets = scorer.targets(scorer.score(dataclasses.replace(with_ids(LENGTH), layer=layer)), rows)
        assert sum(targets) == rows * KV_HEADS and min(targets) >= 4
    assert scorer.rows(LENGTH, 0, 2) > scorer.rows(LENGTH, 1, 2)
    assert KVzip(scores=str(path), budget=budget, even=True).rows(LENGTH, 0, 2) == round(budget * LENGTH)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("compactor:sinks=-1", "write sinks=0"),
        ("compactor:chunk=0", "1 or more"),
        ("compactor:blending=-1", "write blending=0"),
        ("triattention:prefix=-1", "write prefix=0"),
        ("triattention:segments=0", "1 or more"),
        ("triattention:quota=2", "quota=0.5"),
        ("kvzip:sinks=-1", "write sinks=0"),
        ("criticalkv(compactor)", "below 0"),
    ],
)
def test_wrong_parameters_say_what_to_write(spec, words):
    with pytest.raises(PolicyError) as error:
        Policy.parse(spec)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_pairs_follow_the_rope():
    for rope, partner in ((nn.RoPE(8), 4), (nn.RoPE(8, traditional=True), 1)):
        pairs, weight = (np.array(one) for one in pairs_of(rope, 10))
        np.testing.assert_array_equal(np.flatnonzero(pairs[:, 0]), [0, partner])
        np.testing.assert_array_equal(weight, [0.5] * 8 + [0] * 2)
