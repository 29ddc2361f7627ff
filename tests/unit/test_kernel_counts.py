"""Kernels a layer and decode step on a Mac: the counter counts right, and no layout launches more than it did."""

import mlx.core as mx
import pytest

from tests import kernels

LIMITS = {
    "alone": 20,
    "private, equal lengths": 20,
    "private, one bucket": 21,
    "ragged": 26,
    "shared prefix, alone": 22,
    "short shared prefix, four": 24,
    "shared prefix, four": 40,
    "shared prefix, four, ragged": 52,
    "quantized, alone": 28,
    "quantized": 29,
    "snapkv, alone": 20,
    "snapkv": 20,
    "rotating, alone": 21,
    "rotating": 21,
}
"""Most kernels of a Qwen3 layer in bfloat16. mlx-lm's own batch launches 22. Lower a limit with what it limits."""

MLX_LM = 22


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, int]]:
    return kernels.count_as_on_a_mac()


@pytest.mark.parametrize("layout", LIMITS)
def test_a_layer_launches_no_more_kernels_than_its_limit(counts: dict[str, dict[str, int]], layout: str) -> None:
    assert sum(counts[layout].values()) <= LIMITS[layout], "\n" + kernels.table({layout: counts[layout]})


def test_every_layout_of_kvlab_has_a_limit() -> None:
    assert set(LIMITS) == {name for name in kernels.LAYOUTS if not name.startswith("mlx-lm")}


def test_mlx_lms_own_batch_launches_what_its_code_says(counts: dict[str, dict[str, int]]) -> None:
    """Seven products; two norms of the layer and two of Q and K, two RoPEs and attention under a mask (3), all of
    mx.fast; K and V written; two residuals and the offset added to; one compiled activation."""
    want = {"Matmul": 7, "Depends": 2 + 2 + 2 + 3, "SliceUpdate": 2, "Add": 3, "Compiled": 1}
    assert counts["mlx-lm, ragged"] == want
    assert sum(want.values()) == MLX_LM


def test_views_of_memory_are_not_kernels_and_each_array_is_computed_once() -> None:
    x = mx.ones((2, 3, 4))
    mx.eval(x)
    doubled = x * 2
    views = doubled.swapaxes(0, 1)[:, :1].reshape(3, 4)[None].squeeze(0)
    assert kernels.kernels([views, doubled, *mx.split(doubled, 2, axis=2)]) == {"Multiply": 1}
    assert kernels.kernels([mx.softmax(views, axis=-1), views]) == {"Multiply": 1, "Softmax": 1}


@pytest.mark.parametrize(("mask", "count"), [(False, 2), (True, 3)])
def test_attention_is_two_kernels_and_a_third_under_a_mask(mask: bool, count: int) -> None:
    queries, keys, values = mx.ones((1, 4, 1, 8)), mx.ones((1, 2, 5, 8)), mx.ones((1, 2, 5, 6))
    with kernels.stand_ins():
        out = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=1.0, mask=mx.ones((1, 1, 1, 5), mx.bool_) if mask else None
        )
        made = kernels.kernels([out])
    assert out.shape == (1, 4, 1, 6)
    assert made["Depends"] == count


def test_stand_ins_leave_mlx_as_it_was() -> None:
    before = mx.fast.rope
    with kernels.stand_ins():
        assert mx.fast.rope is not before
    assert mx.fast.rope is before
