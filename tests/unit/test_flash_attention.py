"""Attention on several CPU cores equals exact attention."""

import threading

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends.x86 import blas_library, flash_attention, sgemm
from kvlab.backends.x86.backend import X86Backend

pytestmark = [
    pytest.mark.x86_only,
    pytest.mark.skipif(not sgemm.is_available(), reason="kvlab loads a BLAS of its own on Linux only"),
]

HEADS, KV_HEADS, DIM, VALUES = 6, 2, 32, 24


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(queries: np.ndarray, runs, mask, sinks) -> np.ndarray:
    """Compute attention in float64 by its definition."""
    keys, values = (np.concatenate(side, axis=2).astype(np.float64) for side in zip(*runs, strict=True))
    keys, values = (np.repeat(side, HEADS // KV_HEADS, axis=1) for side in (keys, values))
    scores = queries.astype(np.float64) @ keys.swapaxes(-1, -2) * 0.2
    count, length, own = scores.shape[2], scores.shape[3], runs[-1][0].shape[2]
    if isinstance(mask, str):
        mask = np.tri(count, own, own - count, dtype=bool)
    if mask is not None:
        scores[..., length - own :] = np.where(mask, scores[..., length - own :], -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks.reshape(1, HEADS, 1, 1) - scores.max(axis=-1, keepdims=True))
    return weights @ values / total


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("kind", ["causal", "given", "all"])
@pytest.mark.parametrize("lengths", [(37,), (20, 64, 50)])
@pytest.mark.parametrize(("keys", "rows"), [(8, 5), (1024, 256)])
def test_blockwise_attention_equals_exact_attention(monkeypatch, keys, rows, lengths, kind, with_sinks):
    monkeypatch.setattr(flash_attention, "BLOCK_KEYS", keys)
    monkeypatch.setattr(flash_attention, "BLOCK_QUERY_ROWS", rows)
    monkeypatch.setattr(flash_attention, "MAX_SCORES_ON_ONE_CORE", 0)
    count = 33
    queries = draw(1, 1, HEADS, count, DIM)
    runs = [(draw(i, 1, KV_HEADS, n, DIM), draw(9 + i, 1, KV_HEADS, n, VALUES)) for i, n in enumerate(lengths)]
    sinks = draw(3, HEADS) if with_sinks else None
    given = draw(4, count, lengths[-1]) > 0
    given[:, 9:19] = False  # some queries see no row of a block
    given[:, 20] = True
    mask = {"causal": "causal", "given": given, "all": None}[kind]
    out = X86Backend().attention(
        mx.array(queries),
        # Storage has room behind the rows, so that they are not in one piece.
        [tuple(mx.pad(mx.array(side), [(0, 0), (0, 0), (0, 5), (0, 0)])[:, :, :-5] for side in run) for run in runs],
        0.2,
        mx.array(mask)[None, None] if isinstance(mask, np.ndarray) else mask,
        None if sinks is None else mx.array(sinks),
    )
    np.testing.assert_allclose(np.array(out), exact(queries, runs, mask, sinks), rtol=2e-5, atol=2e-6)


def test_attention_on_several_threads_is_exact_and_resets_blas_threads():
    before = blas_library.threads_in_use()
    queries, keys, values = (mx.array(draw(i, KV_HEADS, 40, 3, DIM)) for i in range(3))
    rows = (keys.reshape(1, KV_HEADS, 120, DIM), values.reshape(1, KV_HEADS, 120, DIM))
    mx.eval(queries, rows)
    wanted = flash_attention.flash_attention(queries, [rows])
    wrong: list[bool] = []

    def often() -> None:
        for _ in range(50):
            wrong.append(not np.array_equal(flash_attention.flash_attention(queries, [rows]).out, wanted.out))

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 200 and not any(wrong)
    assert blas_library.threads_in_use() == before


def test_error_on_another_core_is_raised(monkeypatch):
    here, reached = threading.current_thread(), threading.Event()

    def fails(*_: object) -> None:
        if threading.current_thread() is not here:
            reached.set()
            raise FloatingPointError
        assert reached.wait(60), "no other core has got a part"

    monkeypatch.setattr(flash_attention, "MAX_SCORES_ON_ONE_CORE", 0)
    monkeypatch.setattr(flash_attention, "physical_cores", lambda: 2)
    monkeypatch.setattr(flash_attention, "_block", fails)
    before = blas_library.threads_in_use()
    keys = mx.zeros((1, KV_HEADS, 8, DIM))
    with pytest.raises(FloatingPointError):
        flash_attention.flash_attention(mx.zeros((KV_HEADS, 4, 3, DIM)), [(keys, keys)], "causal")
    assert blas_library.threads_in_use() == before


def test_mask_of_another_shape_is_refused():
    keys = mx.zeros((1, KV_HEADS, 8, DIM))
    with pytest.raises(ValueError, match="mask"):
        flash_attention.flash_attention(mx.zeros((KV_HEADS, 4, 3, DIM)), [(keys, keys)], np.ones((4, 99), bool))


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        ((1, 2, 9, 32), (1, 2, 9, 32)),  # narrower than the queries, as with latent attention
        ((1, 2, 9, 64), (1, 2, 9, 64)),
        ((1, 1, 9, 48), (1, 1, 9, 48)),
        ((1, 2, 9, 48), (1, 2, 8, 48)),
        ((1, 2, 9, 48), (1, 1, 9, 48)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused_before_blas_reads_them(keys, values):
    sound = (mx.zeros((1, 2, 4, 48)), mx.zeros((1, 2, 4, 16)))
    with pytest.raises(ValueError, match="do not belong together"):
        flash_attention.flash_attention(mx.zeros((2, 3, 2, 48)), [sound, (mx.zeros(keys), mx.zeros(values))])


@pytest.mark.parametrize(("heads", "cores_here"), [(1, 2), (3, 2), (2, 2), (2, 8), (5, 1)])
def test_blocks_divide_evenly_among_cores(heads, cores_here):
    cuts = flash_attention._cuts(700, 2, heads, cores_here)
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])] and cuts[-1][1] == 700
    assert (
        heads * len(cuts) % cores_here == 0
        and max(end - start for start, end in cuts) * 2 <= flash_attention.BLOCK_QUERY_ROWS + 2
    )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_products_of_array_slices_equal_numpys(transpose, add):
    a, b, out = draw(1, 7, 20)[:, 3:15], draw(2, *((9, 16) if transpose else (12, 9))), draw(3, 7, 11)
    b = b[:, 2:14] if transpose else b
    into = out[:, 1:10]
    wanted = a @ (b.T if transpose else b) + (into if add else 0)
    sgemm.product(a, b, into, transpose=transpose, add=add)
    np.testing.assert_allclose(into, wanted, rtol=1e-5, atol=1e-5)
