"""The emulation of Metal's attention: right to one rounding, for every kind of mask, and in child processes too."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.metal.fused_attention import fused, is_installed

FOLDER = Path(__file__).resolve().parents[1] / "metal"
BATCH, HEADS, KV_HEADS, QUERIES, ROWS, WIDTH, V_WIDTH = 2, 6, 2, 5, 40, 32, 16
DTYPES = [mx.float16, mx.bfloat16, mx.float32]
MASKS = ["none", "causal", "bool", "additive"]
ROUNDING = {mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8, mx.float32: 2.0**-18}
"""Largest relative error of one rounding; for float32 what its sums lose."""


def composed(*arguments: mx.array, **options: object) -> mx.array:
    """MLX's own attention, whether or not this process has the other."""
    function = mx.fast.scaled_dot_product_attention
    return getattr(function, "__wrapped__", function)(*arguments, **options)


def draw(dtype: mx.Dtype, mask: str, sinks: bool) -> tuple[list[mx.array], dict[str, object]]:
    rng = np.random.default_rng(3)
    shapes = [(BATCH, HEADS, QUERIES, WIDTH), (BATCH, KV_HEADS, ROWS, WIDTH), (BATCH, KV_HEADS, ROWS, V_WIDTH)]
    arrays = [mx.array(rng.normal(0, 1, shape).astype(np.float32)).astype(dtype) for shape in shapes]
    masks = {
        "none": None,
        "causal": "causal",
        "bool": mx.array(rng.random((BATCH, 1, QUERIES, ROWS)) < 0.7),
        "additive": mx.array(rng.normal(0, 2, (1, HEADS, QUERIES, ROWS)).astype(np.float32)).astype(dtype),
    }
    options = {"scale": 0.3, "mask": masks[mask], "sinks": mx.array(rng.normal(0, 1, HEADS)).astype(dtype)}
    return arrays, options if sinks else {**options, "sinks": None}


def reference(arrays: list[mx.array], options: dict[str, object]) -> np.ndarray:
    """The same in float64, by NumPy."""
    q, k, v = (np.array(array.astype(mx.float32)).astype(np.float64) for array in arrays)
    k, v = (np.repeat(array, HEADS // KV_HEADS, axis=1) for array in (k, v))
    scores = np.einsum("bhnd,bhld->bhnl", q, k) * options["scale"]
    mask, sinks = options["mask"], options["sinks"]
    if isinstance(mask, str):
        mask = mx.array(np.tri(QUERIES, ROWS, ROWS - QUERIES, dtype=bool))
    if isinstance(mask, mx.array) and mask.dtype == mx.bool_:
        scores = np.where(np.array(mask), scores, -np.inf)
    elif isinstance(mask, mx.array):
        scores = scores + np.array(mask.astype(mx.float32))
    weights = np.exp(scores)
    total = weights.sum(axis=-1, keepdims=True)
    if isinstance(sinks, mx.array):
        total = total + np.exp(np.array(sinks.astype(mx.float32)).astype(np.float64))[None, :, None, None]
    return np.einsum("bhnl,bhld->bhnd", weights / total, v)


def error(out: mx.array, want: np.ndarray) -> np.ndarray:
    return np.abs(np.array(out.astype(mx.float32)) - want)


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_attention_rounds_once(dtype: mx.Dtype, mask: str, sinks: bool) -> None:
    arrays, options = draw(dtype, mask, sinks)
    out, want = fused(composed)(*arrays, **options), reference(arrays, options)
    assert out.dtype == dtype
    assert out.shape == (BATCH, HEADS, QUERIES, V_WIDTH)
    assert (error(out, want) <= ROUNDING[dtype] * np.abs(want) + 1e-5).all()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_fused_attention_is_nearer_than_the_composed_one_of_a_cpu(dtype: mx.Dtype) -> None:
    arrays, options = draw(dtype, "bool", False)
    want = reference(arrays, options)
    near, far = error(fused(composed)(*arrays, **options), want), error(composed(*arrays, **options), want)
    assert near.mean() * 1.5 < far.mean()


def test_float32_comes_out_as_before() -> None:
    arrays, options = draw(mx.float32, "additive", True)
    assert mx.array_equal(fused(composed)(*arrays, **options), composed(*arrays, **options)).item()


def test_fused_attention_refuses_what_mlx_refuses() -> None:
    arrays, options = draw(mx.bfloat16, "none", False)
    with pytest.raises(ValueError, match="Mask type"):
        fused(composed)(*arrays, scale=1.0, mask=mx.zeros((1, 1, QUERIES, ROWS), mx.float32))


@pytest.mark.parametrize(("backend", "want"), [("mlx", "True"), ("", "False")])
def test_a_child_process_has_it_where_it_decides_as_on_a_mac(backend: str, want: str, tmp_path: Path) -> None:
    code = "import kvlab.models, mlx.core as mx; print(hasattr(mx.fast.scaled_dot_product_attention, '_is_fused'))"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "KVLAB_BACKEND": backend}
    if not backend:
        del environment["KVLAB_BACKEND"]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (want, "")


def test_this_process_has_it_where_it_decides_as_on_a_mac() -> None:
    assert is_installed() == (os.environ.get("KVLAB_BACKEND") == "mlx")
