"""The storage codec: its entropy coder, its tables, its transform, and what it writes and reads back."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.serialize import PayloadError
from kvlab.caches.storage_codec import KVSamples, KVTransform, StorageCodec, fitted, rans
from kvlab.caches.storage_codec.samples import by_token
from kvlab.caches.storage_codec.scale_tables import ESCAPE, LARGEST, SCALES, ScaleTables
from kvlab.caches.storage_codec.transform import SideTransform
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import without_rope
from tests.integration.test_decoder import conversation

NORMAL = np.quantile(np.random.default_rng(0).normal(size=200_000), np.linspace(0, 1, 4097)).astype(np.float32)


def frequencies(shares: list[float]) -> np.ndarray:
    found = np.maximum(1, np.floor(np.array(shares) / sum(shares) * (rans.TOTAL - len(shares)))).astype(np.int64)
    found[0] += rans.TOTAL - found.sum()
    return found


# -- entropy coding ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 400), st.integers(1, 40))
def test_any_symbols_come_back(seed, count, lanes):
    rng = np.random.default_rng(seed)
    tables = rans.Tables.of(np.stack([frequencies(rng.random(9) ** 6), frequencies([1.0] * 9)]))
    table, symbols = rng.integers(0, 2, count), rng.integers(0, 9, count)
    code = rans.encode(symbols, table, tables, lanes)
    np.testing.assert_array_equal(rans.decode(code, table, tables, lanes), symbols)


def test_a_code_is_as_long_as_the_entropy_of_its_symbols():
    rng = np.random.default_rng(1)
    shares = [0.9, 0.06, 0.03, 0.01]
    tables = rans.Tables.of(frequencies(shares)[None])
    symbols = rng.choice(4, 200_000, p=shares)
    entropy = -np.sum(np.log2(np.array(shares)[symbols]))
    bits = 8 * len(rans.encode(symbols, np.zeros(len(symbols), int), tables, 64))
    assert entropy < bits < 1.002 * entropy + 64 * 8 * rans.STATE_BYTES


@pytest.mark.parametrize("change", ["cut", "longer", "flipped"])
def test_a_code_that_was_changed_is_refused(change):
    rng = np.random.default_rng(2)
    tables = rans.Tables.of(frequencies([0.5, 0.3, 0.2])[None])
    table, symbols = np.zeros(5000, int), rng.integers(0, 3, 5000)
    code = bytearray(rans.encode(symbols, table, tables, 8))
    if change == "flipped":
        code[3] ^= 0x10
    data = {"cut": code[:-2], "longer": code + b"\0\0", "flipped": code}[change]
    with pytest.raises(PayloadError):
        rans.decode(bytes(data), table, tables, 8)


def test_tables_and_symbols_that_cannot_be_coded_are_refused():
    with pytest.raises(ValueError, match="sum to"):
        rans.Tables.of(np.ones((1, 4), int))
    tables = rans.Tables.of(np.array([[rans.TOTAL, 0]]))
    with pytest.raises(ValueError, match="frequency 0"):
        rans.encode(np.array([1]), np.array([0]), tables, 1)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_tables_hold_the_shares_and_means_of_normal_steps():
    made = ScaleTables.of(NORMAL)
    draws = np.random.default_rng(5).normal(size=400_000)
    for table in (2, 12, 20):
        values = draws * SCALES[table]
        steps = np.rint(values)
        for step in (0, 1, -2):
            mine = steps == step
            if mine.mean() > 0.01:
                share = made.tables.frequency[table, step + LARGEST] / rans.TOTAL
                assert share == pytest.approx(mine.mean(), abs=0.004)
                assert made.centre[table, step + LARGEST] == pytest.approx(values[mine].mean(), abs=0.03)
    assert (made.tables.frequency[:, ESCAPE] > 0).all()


def test_components_take_the_table_of_their_size_and_small_ones_none():
    np.testing.assert_array_equal(ScaleTables.table_of(SCALES), np.arange(len(SCALES)))
    assert ScaleTables.table_of(np.array([0.0, 0.2]))[0] == -1 and ScaleTables.table_of(np.array([1e9]))[0] == 33


# -- transform --------------------------------------------------------------------------------------------------------


def test_coefficients_are_uncorrelated_and_errors_count_by_the_weight():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(4000, 3))
    rows = rng.normal(size=(4000, 12)) @ rng.normal(size=(12, 12)) + features @ rng.normal(size=(3, 12)) * 5 + 3
    root = rng.normal(size=(12, 12))
    weight, step = root @ root.T + np.eye(12), 0.05
    side = SideTransform.of(rows, features, weight, step)
    left = rows - side.expected(features)
    assert np.abs(np.cov(left.T, features.T)[:12, 12:]).max() < 0.02 * np.std(rows)
    coefficients = left @ side.forward
    np.testing.assert_allclose(
        np.cov(coefficients.T, bias=True), np.diag(side.deviation**2), atol=1e-2 * side.deviation[0]
    )
    np.testing.assert_allclose(coefficients @ side.inverse + side.expected(features), rows, atol=1e-2)
    errors = rng.normal(size=(5, 12))
    weighed = np.einsum("ni,ij,nj->n", errors @ side.inverse, weight, errors @ side.inverse)
    np.testing.assert_allclose(weighed, step**2 * (errors**2).sum(axis=1), rtol=1e-3)


# -- keys and values of a model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(make_model):
    model = make_model("llama").model
    return model, KVSamples.of(model, [conversation(seed, 300) for seed in (1, 2)])


def rows_of(model, tokens, start=0):
    caches = observed_caches(model, lambda *_: None)
    model(mx.array([tokens]), cache=caches)
    return [tuple(side[:, :, start:] for side in cache.rows.decode()) for cache in caches]


@pytest.mark.parametrize("start", [0, 2, 64])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_finer_steps_come_nearer_and_first_tokens_stay_exact(made, start, dtype):
    model, samples = made
    layers = [tuple(side.astype(dtype) for side in sides) for sides in rows_of(model, conversation(7, 130), start)]
    sizes, errors = [], []
    for step in (1.0, 0.25, 0.03):
        codec = StorageCodec.of(model, fitted(samples, step, step))
        data = codec.encode(layers, start)
        back = codec.decode(data)
        sizes.append(len(data))
        pairs = [
            (np.array(a.astype(mx.float32)), np.array(b.astype(mx.float32)))
            for sides, got in zip(layers, back, strict=True)
            for a, b in zip(sides, got, strict=True)
        ]
        errors.append(np.mean([np.abs(a - b)[:, :, max(0, 4 - start) :].mean() / np.abs(a).mean() for a, b in pairs]))
        for a, b in pairs:
            exact = max(0, 4 - start)
            np.testing.assert_array_equal(a[:, :, :exact], b[:, :, :exact])
    assert sizes[0] < sizes[1] < sizes[2] and errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def coefficients_of_first_keys(keys, transform):
    """Coefficients of the first layer's keys, which nothing predicts, ``[tokens, coefficients]``."""
    at = mx.broadcast_to(mx.arange(keys.shape[2]), keys.shape[:3])
    side = transform.layers[0][0]
    return ((by_token(without_rope(nn.RoPE(64), keys, at)) - side.mean) @ side.forward)[4:]


def test_errors_are_a_twelfth_of_the_squared_step(made):
    """Uniform quantization of many steps errs by step squared over 12, in weighed coefficients."""
    model, samples = made
    transform = fitted(samples, 0.01, 0.01)
    layers = rows_of(model, conversation(7, 130))
    codec = StorageCodec.of(model, transform)
    back = codec.decode(codec.encode(layers, 0))
    given, got = (coefficients_of_first_keys(rows[0][0], transform) for rows in (layers, back))
    large = transform.layers[0][0].deviation > 10
    assert large.any() and np.mean((given - got)[:, large] ** 2) == pytest.approx(1 / 12, rel=0.1)


def test_coefficients_beyond_all_symbols_come_back_too(made):
    model, samples = made
    transform = fitted(samples, 0.1, 0.1)
    layers = [(100 * keys, values) for keys, values in rows_of(model, conversation(7, 40))]
    codec = StorageCodec.of(model, transform)
    back = codec.decode(codec.encode(layers, 0))
    given, got = (coefficients_of_first_keys(rows[0][0], transform) for rows in (layers, back))
    assert np.abs(given).max() > 2 * LARGEST and np.abs(given - got).max() < 1


def test_bytes_of_another_kind_are_refused(made):
    model, samples = made
    codec = StorageCodec.of(model, fitted(samples, 0.5, 0.5))
    data = codec.encode(rows_of(model, conversation(7, 40)), 0)
    with pytest.raises(ModelError, match="one pair"):
        codec.encode([None, None], 0)
    for other in (b"", data[:-1], data + b"\0", b"KVS0" + data[4:]):
        with pytest.raises(PayloadError):
            codec.decode(other)


def test_a_transform_survives_its_file_and_fits_one_model_only(made, make_model, tmp_path):
    model, samples = made
    samples.save(tmp_path / "samples.npz")
    transform = fitted(KVSamples.load(tmp_path / "samples.npz"), 0.3, 0.3)
    transform.save(tmp_path / "kv.npz")
    layers = rows_of(model, conversation(7, 40))
    read = KVTransform.load(tmp_path / "kv.npz")
    codes = [StorageCodec.of(model, one).encode(layers, 0) for one in (fitted(samples, 0.3, 0.3), transform, read)]
    assert codes[0] == codes[1] == codes[2]
    with pytest.raises(ModelError, match="layers"):
        StorageCodec.of(make_model("llama", num_hidden_layers=1).model, read)
    with pytest.raises(ModelError, match="no transform"):
        KVTransform.load(tmp_path / "none.npz")


def test_too_few_tokens_and_steps_of_nothing_are_refused(made):
    with pytest.raises(ModelError, match="512 or more"):
        fitted(KVSamples.of(made[0], [conversation(1, 100)]), 0.1, 0.1)
    with pytest.raises(ModelError, match="above 0"):
        fitted(made[1], 0, 0.3)
