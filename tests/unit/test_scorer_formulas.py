"""Scorers of the literature against plain NumPy references of their formulas, in float64 loops."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import PolicyError, PolicyWarning
from kvlab.policies import CUR, H2O, TOVA, AdaKV, KeyDiff, KNorm, LagKV, Policy, PyramidKV, ScoreContext, SepLLM, SnapKV
from kvlab.policies.scorers.base import Scorer

HEADS, KV_HEADS, DIM = 6, 2, 16
GROUP = HEADS // KV_HEADS
DTYPES = pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])


def make_context(length: int, queries: int = 0, seed: int = 0, dtype: mx.Dtype = mx.float32) -> ScoreContext:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> mx.array:
        return mx.array(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    return ScoreContext(
        keys=draw(1, KV_HEADS, length, DIM) + 0.5,
        values=draw(1, KV_HEADS, length, DIM),
        positions=mx.broadcast_to(mx.arange(length), (1, KV_HEADS, length)).astype(mx.int32),
        queries=draw(1, HEADS, queries, DIM) if queries else None,
        scale=DIM**-0.5,
        layer=1,
        n_layers=3,
        offset=length,
    )


def numbers(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def attention(ctx: ScoreContext) -> np.ndarray:
    """Causal weights ``[n_heads, w, length]`` of the last queries, one by one."""
    keys, queries = numbers(ctx.keys[0]), numbers(ctx.queries[0])
    length, count = keys.shape[1], queries.shape[1]
    out = np.zeros((HEADS, count, length))
    for head in range(HEADS):
        for i in range(count):
            seen = length - count + i + 1
            logits = keys[head // GROUP, :seen] @ queries[head, i] * ctx.scale
            weights = np.exp(logits - logits.max())
            out[head, i, :seen] = weights / weights.sum()
    return out


def close(got: mx.array, want: np.ndarray, dtype: mx.Dtype, reads_attention: bool = False) -> None:
    # Attention logits are computed in the dtype of the keys; all else is computed in float32.
    rtol = 0.06 if reads_attention and dtype == mx.bfloat16 else 2e-4
    np.testing.assert_allclose(np.array(got[0]), want, rtol=rtol, atol=2e-5)


# -- formulas ---------------------------------------------------------------------------------------------------------


@DTYPES
def test_keydiff_is_minus_the_cosine_to_the_mean_of_the_unit_keys(dtype):
    ctx = make_context(57, dtype=dtype)
    want = np.zeros((KV_HEADS, 57))
    for head, keys in enumerate(numbers(ctx.keys[0])):
        units = np.array([key / np.sqrt(key @ key) for key in keys])
        anchor = units.mean(axis=0)
        for row, key in enumerate(keys):
            want[head, row] = -(key @ anchor) / (np.sqrt(key @ key) * np.sqrt(anchor @ anchor))
    close(KeyDiff().score(ctx), want, dtype)


@given(st.floats(0.01, 100), st.integers(2, 40))
def test_keydiff_does_not_depend_on_the_length_of_keys(factor, length):
    ctx = make_context(length)
    longer = dataclasses.replace(ctx, keys=ctx.keys * factor)
    np.testing.assert_allclose(np.array(KeyDiff().score(longer)), np.array(KeyDiff().score(ctx)), atol=1e-5)


def test_keydiff_of_a_key_of_zeros_is_a_number():
    ctx = make_context(5)
    zero = dataclasses.replace(ctx, keys=ctx.keys * mx.array([1, 0, 1, 1, 1])[None, None, :, None])
    assert np.isfinite(np.array(KeyDiff().score(zero))).all()


@DTYPES
def test_tova_is_the_last_querys_weight_averaged_over_all_heads(dtype):
    ctx = make_context(41, 1, dtype=dtype)
    scores = TOVA().score(ctx)
    want = np.broadcast_to(attention(ctx)[:, -1].mean(axis=0), (KV_HEADS, 41))
    close(scores[..., :-1], want[:, :-1], dtype, reads_attention=True)
    assert (np.array(scores)[0, :, -1] > 1).all()  # the newest row stays


@pytest.mark.parametrize(("length", "lag", "sinks"), [(100, 16, 4), (99, 8, 0), (36, 16, 4), (35, 16, 4), (3, 16, 4)])
@DTYPES
def test_lagkv_ranks_each_part_against_the_next_one(length, lag, sinks, dtype):
    ctx = make_context(length, seed=length, dtype=dtype)
    want = np.full((KV_HEADS, length), 2.0)
    want[:, :sinks] = 3
    parts = (length - sinks) // lag
    for head in range(KV_HEADS):
        for part in range(parts - 1):
            start, total = sinks + part * lag, np.zeros(lag)
            for side in (ctx.keys, ctx.values):
                rows = numbers(side[0, head])
                own, following = rows[start : start + lag], rows[start + lag : start + 2 * lag]
                least, most = following.min(axis=0), following.max(axis=0)
                spread = np.array([np.std((row - least) / (most - least), ddof=1) for row in own])
                total += np.exp(spread) / np.exp(spread).sum()
            order = np.argsort(total)
            for rank, row in enumerate(order):
                want[head, start + row] = rank / lag
    got = np.array(LagKV(lag=lag, sinks=sinks).score(ctx)[0])
    # Rows whose sums differ by less than the rounding may change places.
    assert np.mean(np.abs(got - want) > 1e-6) <= 0.02
    np.testing.assert_allclose(got, want, atol=1 / lag + 1e-6)


def test_lagkv_keeps_sinks_and_latest_rows_of_a_short_prompt():
    scores = np.array(LagKV(lag=16, sinks=4).score(make_context(35))[0])
    assert (scores[:, :4] == 3).all() and (scores[:, 4:] == 2).all()


def test_lagkv_of_a_constant_channel_is_a_number():
    ctx = make_context(40)
    flat = dataclasses.replace(ctx, keys=mx.ones_like(ctx.keys), values=mx.zeros_like(ctx.values))
    assert np.isfinite(np.array(LagKV(lag=8).score(flat))).all()


@pytest.mark.parametrize(("length", "local", "sinks"), [(64, 16, 4), (61, 16, 4), (50, 7, 0), (9, 16, 2)])
@DTYPES
def test_cur_is_the_product_of_local_shares_of_squared_norms(length, local, sinks, dtype):
    ctx = make_context(length, dtype=dtype)
    want = np.ones((KV_HEADS, length))
    for side in (ctx.keys, ctx.values):
        squares = (numbers(side[0]) ** 2).sum(axis=-1)
        for start in range(0, length, local):
            window = squares[:, start : start + local]
            want[:, start : start + local] *= window / window.sum(axis=1, keepdims=True)
    want[:, :sinks] = 2
    close(CUR(local=local, sinks=sinks).score(ctx), want, dtype)


def test_cur_of_a_window_of_zeros_is_a_number():
    ctx = make_context(40)
    empty = dataclasses.replace(ctx, keys=mx.zeros_like(ctx.keys))
    assert np.isfinite(np.array(CUR().score(empty))).all()


# -- budgets by layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "prompt", "layers", "want"),
    [
        # 2 B - B / 20 is more than the prompt has before its window: 1000 - 32 in front, 2 B - 968 at the end.
        (0.75, 1000, 3, [968, 750, 532]),
        (0.5, 1000, 3, [968, 500, 32]),
        # 2 B - B / 20 = 1950, B / 20 = 50.
        (0.1, 10_000, 3, [1950, 1000, 50]),
        (1000, 10_000, 5, [1950, 1475, 1000, 525, 50]),
        # What no pyramid fits is the same in every layer: all rows, one layer, only the window.
        (1.0, 1000, 3, [1000] * 3),
        (0.5, 1000, 1, [500]),
        (0.03, 1000, 3, [30] * 3),
    ],
)
def test_pyramidkv_gives_layers_budgets_that_fall_evenly_from_the_first(budget, prompt, layers, want):
    scorer = PyramidKV(budget=budget)
    assert [scorer.rows(prompt, layer, layers) for layer in range(layers)] == want


def test_pyramidkv_says_where_the_last_layer_would_keep_less_than_its_window():
    with pytest.warns(PolicyWarning, match="keeps as many rows in every layer, as snapkv does"):
        assert PyramidKV(budget=0.25).rows(1000, 0, 3) == 250


@given(st.floats(0.02, 1.0), st.integers(200, 20_000), st.integers(2, 40), st.floats(1, 50))
@pytest.mark.filterwarnings("ignore::kvlab.errors.PolicyWarning")
def test_pyramidkv_keeps_its_budget_on_average(budget, prompt, layers, beta):
    rows = [PyramidKV(budget=budget, beta=beta).rows(prompt, layer, layers) for layer in range(layers)]
    assert all(a >= b for a, b in zip(rows, rows[1:], strict=False))
    assert min(rows) >= 1 and max(rows) <= prompt
    assert abs(np.mean(rows) - SnapKV(budget=budget).rows(prompt, 0, layers)) <= 0.5


def test_pyramidkv_scores_as_snapkv():
    ctx = make_context(80, 32)
    np.testing.assert_array_equal(np.array(PyramidKV().score(ctx)), np.array(SnapKV().score(ctx)))


# -- attention of all queries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sum", "mean"])
@DTYPES
def test_h2o_adds_up_the_attention_of_all_queries(mode, dtype):
    length, recent = 150, 0.4
    ctx = make_context(length, length, dtype=dtype)
    want = attention(ctx).reshape(KV_HEADS, GROUP, length, length).sum(axis=(1, 2))
    if mode == "mean":
        want /= length - np.arange(length)
    scorer = H2O(budget=50, mode=mode, recent=recent)
    total = scorer.accumulate(mx.zeros((1, KV_HEADS, length)), ctx)
    scores = scorer.score(dataclasses.replace(ctx, accumulated=total))
    close(scores[..., : length - 20], want[:, : length - 20], dtype, reads_attention=True)
    assert np.isinf(np.array(scores)[0, :, length - 20 :]).all()  # 0.4 of 50 rows are the latest
    # Each query pays 1 in all; the queries of a group share a KV head.
    np.testing.assert_allclose(np.array(total[0]).sum(axis=-1), GROUP * length, rtol=1e-3)


def test_h2o_is_the_same_in_any_chunks():
    ctx = make_context(130, 130)
    whole = H2O().accumulate(mx.zeros((1, KV_HEADS, 130)), ctx)
    parts = mx.zeros((1, KV_HEADS, 0))
    for start, end in ((0, 70), (70, 71), (71, 130)):
        chunk = dataclasses.replace(
            ctx, keys=ctx.keys[:, :, :end], values=ctx.values[:, :, :end], positions=ctx.positions[:, :, :end],
            queries=ctx.queries[:, :, start:end], offset=end,
        )  # fmt: skip
        parts = H2O().accumulate(mx.pad(parts, [(0, 0), (0, 0), (0, end - start)]), chunk)
    np.testing.assert_allclose(np.array(parts), np.array(whole), rtol=1e-4, atol=1e-5)


# -- token ids --------------------------------------------------------------------------------------------------------


def test_sepllm_keeps_sinks_then_latest_then_separators_then_the_newest_others():
    ctx = make_context(20)
    ids = mx.broadcast_to(
        mx.array([7 if i in (6, 9, 14) else 8 if i == 11 else 1 for i in range(20)]), (1, KV_HEADS, 20)
    )
    scores = np.array(SepLLM(separators="7+8", sinks=2, latest=3).score(dataclasses.replace(ctx, token_ids=ids))[0])
    want = np.zeros(20)
    want[:2], want[[6, 9, 11, 14]], want[-3:] = 3, 1, 2
    np.testing.assert_array_equal(scores, np.tile(want, (KV_HEADS, 1)))


def test_sepllm_finds_the_separators_of_a_tokenizer():
    class Tokenizer:
        texts = ("the", ".", " .", ",\n", ", and", "", "\t", "Ġ")

        def get_vocab(self):
            return {text: i for i, text in enumerate(self.texts)}

        def decode(self, ids):
            return "".join(self.texts[i] for i in ids)

    policy = SepLLM.for_tokenizer(Tokenizer(), budget=0.25)
    assert policy == SepLLM(separators="1+2+3+6", budget=0.25)
    assert Policy.parse(str(Policy(policy))) == Policy(policy)
    Tokenizer.texts = ("a", "b")
    with pytest.raises(PolicyError, match="no token that is a separator"):
        SepLLM.for_tokenizer(Tokenizer())


def test_sepllm_without_separators_says_what_to_write():
    with pytest.raises(PolicyError, match="sepllm:separators=13"):
        SepLLM().score(make_context(5))


# -- budgets by head --------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(1, 40), st.floats(0, 1), st.booleans())
def test_adakv_keeps_the_best_rows_of_all_heads_and_the_own_share_of_each(seed, rows, alpha, has_ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (4, 40)) if has_ties else rng.permutation(160).reshape(4, 40) ** 2
    targets = AdaKV(alpha=alpha).targets(mx.array(scores[None].astype(np.float32)), rows)
    own = max(1, int(alpha * rows))
    assert sum(targets) == 4 * rows and min(targets) >= own
    kept = [set(np.argsort(-head, kind="stable")[:count].tolist()) for head, count in zip(scores, targets, strict=True)]
    spare = [head[row] for head, few in zip(scores, kept, strict=True) for row in set(range(40)) - few]
    # A row that leaves is no better than any that stays beyond the own rows of its head.
    beyond = [np.sort(head[list(few)])[: len(few) - own] for head, few in zip(scores, kept, strict=True)]
    if spare and any(map(len, beyond)):
        assert max(spare) <= min(float(some.min()) for some in beyond if len(some))


def test_adakv_of_equal_scores_is_the_same_number_in_all_heads():
    assert AdaKV().targets(mx.zeros((1, 4, 30)), 10) == [10] * 4
    assert AdaKV().targets(mx.full((1, 4, 30), mx.inf), 10) == [10] * 4


def test_adakv_alone_decides_budget_and_interval_wherever_they_are_written():
    written = ("adakv(knorm:budget=0.3,interval=4):alpha=0.1", "adakv(knorm):budget=0.3,interval=4,alpha=0.1")
    first, second = (Policy.parse(spec) for spec in written)
    assert first == second and str(first) == written[1]
    scorer = first.retention
    assert (scorer.budget, scorer.interval, scorer.alpha) == (0.3, 4, 0.1)
    assert scorer.rows(1000, 0, 2) == 300
    assert Policy.parse("adakv(snapkv:window=8):budget=12").retention.window == 8


@pytest.mark.filterwarnings("ignore::kvlab.errors.PolicyWarning")
def test_adakv_scores_accumulates_and_reads_as_what_it_wraps():
    ctx = make_context(60, 32)
    wrapped = AdaKV(scorer=SnapKV())
    np.testing.assert_array_equal(np.array(wrapped.score(ctx)), np.array(SnapKV().score(ctx)))
    assert not wrapped.accumulates and AdaKV(scorer=H2O()).accumulates
    pyramid = AdaKV(scorer=PyramidKV(), budget=0.75)
    assert [pyramid.rows(1000, layer, 3) for layer in range(3)] == [968, 750, 532]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lagkv:lag=1", "such as 128"),
        ("lagkv:sinks=-1", "negative"),
        ("cur:local=0", "1 row or more"),
        ("cur:sinks=-1", "write sinks=0"),
        ("pyramidkv:beta=0.5", "such as 20"),
        ("pyramidkv:window=0", "pyramidkv: window=0"),
        ("pyramidkv:kernel=4", "pyramidkv: kernel=4"),
        ("snapkv:kernel=4", "snapkv: kernel=4"),
        ("h2o:mode=max", "write sum or mean"),
        ("h2o:recent=2", "recent=0.5"),
        ("sepllm:separators=13;30", "13+30"),
        ("sepllm:latest=-1", "latest=0 or more"),
        ("adakv:alpha=1.5", "alpha=0.2"),
        ("adakv(tova)", "use tova without adakv"),
        ("adakv(sepllm:separators=3)", "without adakv"),
        ("adakv(adakv)", "shares out a budget already: write adakv alone"),
        ("adakv(knorm:budget=0.3):budget=0.2", "write one"),
        ("adakv(snapkv):budget=20", "above its window=32"),
    ],
)
def test_wrong_parameters_say_what_to_write(spec, words):
    with pytest.raises(PolicyError) as error:
        Policy.parse(spec)
    assert words in str(error.value) and "\n" not in str(error.value)


# -- heads that are filled up -----------------------------------------------------------------------------------------


def filled(ctx: ScoreContext, filling: int) -> ScoreContext:
    """The same rows behind ``filling`` rows of other numbers in the first head, and ``filling`` less rows in it."""
    rng = np.random.default_rng(9)
    length = ctx.keys.shape[2]

    def shifted(side: mx.array) -> mx.array:
        rows = np.array(side)
        rows[0, 0, filling:] = rows[0, 0, : length - filling]
        rows[0, 0, :filling] = rng.normal(size=(filling, DIM)) * 9
        return mx.array(rows)

    positions = np.array(ctx.positions)
    positions[0, 0] = [-1] * filling + list(range(filling, length))
    return dataclasses.replace(ctx, keys=shifted(ctx.keys), values=shifted(ctx.values), positions=mx.array(positions))


@pytest.mark.parametrize("scorer", [KeyDiff(), KNorm(), CUR(sinks=0), LagKV(lag=8, sinks=4)], ids=str)
@pytest.mark.parametrize("filling", [1, 8, 13, 30])
def test_filling_in_front_of_a_head_changes_no_score_of_its_rows(scorer: Scorer, filling: int):
    ctx = make_context(61)
    kept = 61 - filling
    alone = dataclasses.replace(
        ctx, keys=ctx.keys[:, :, :kept], values=ctx.values[:, :, :kept], positions=ctx.positions[:, :, :kept]
    )
    scores = np.array(scorer.score(filled(ctx, filling)))[0]
    np.testing.assert_allclose(scores[0, filling:], np.array(scorer.score(alone))[0, 0], atol=1e-6)
    np.testing.assert_allclose(scores[1], np.array(scorer.score(ctx))[0, 1], atol=1e-6)
    assert np.isfinite(scores).all()
