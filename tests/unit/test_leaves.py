"""What rests of a cache comes back bit for bit, whatever its kind and dtype, or not at all."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from kvlab.caches import LayerCache, cache_loader, serialize
from kvlab.policies import Policy

TOKENS = 77
BLOCK = 16


def rows(count: int, seed: int, dtype: mx.Dtype) -> mx.array:
    return mx.random.normal((1, 2, count, 64), key=mx.random.key(seed)).astype(dtype)


def feed(cache, dtype: mx.Dtype, start: int = 0, end: int = TOKENS) -> None:
    """Give a cache tokens in steps of 20, then one by one, as a prefill and decoding do."""
    at = start
    while at < end:
        count = min(20, end - at) if at < 60 else 1
        if isinstance(cache, CacheList):
            for inner in cache.caches:
                feed(inner, dtype, at, at + count)
        elif isinstance(cache, ArraysCache):
            cache[0], cache[1] = rows(3, at, dtype), rows(5, at + 1, mx.float32)
        else:
            if isinstance(cache, ChunkedKVCache):
                cache.maybe_trim_front()
            cache.update_and_fetch(rows(count, at, dtype), rows(count, 1000 + at, dtype))
            if isinstance(cache, LayerCache):
                cache.attend(rows(count, at, dtype), scale=1.0)
        at += count


def make():
    return {
        "kv": KVCache(),
        "window": RotatingKVCache(max_size=24),
        "arrays": ArraysCache(size=2),
        "chunks": ChunkedKVCache(30),
        "list": CacheList(ArraysCache(size=2), KVCache()),
        "own": LayerCache(Policy.parse("quantized:bits=4")),
    }


def fill(caches, blocks, checkpoint, dtype):
    filler, at = cache_loader.CacheLoader(caches, TOKENS, dtype), 0
    for block in blocks:
        filler.take(block, at)
        at += next(iter(block.values())).shape[1]
    filler.finish(at, checkpoint)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("kind", list(make()))
def test_a_restored_cache_is_the_same_now_and_later(kind, dtype):
    first, second = make()[kind], make()[kind]
    feed(first, dtype)
    blocks = serialize.to_blocks(serialize.token_rows([first]), 0, TOKENS, BLOCK)
    assert [next(iter(block.values())).shape[1] for block in blocks] == [16, 16, 16, 16, 13]
    fill([second], blocks, serialize.to_checkpoint([first]), dtype)
    for _ in range(3):
        for a, b in zip(seen(first), seen(second), strict=True):
            assert a.dtype == b.dtype and mx.array_equal(a, b)
        feed(first, dtype, TOKENS, TOKENS + 35)
        feed(second, dtype, TOKENS, TOKENS + 35)


def seen(cache) -> list[mx.array]:
    """What a model would see of the cache."""
    if isinstance(cache, CacheList):
        return [array for inner in cache.caches for array in seen(inner)]
    if isinstance(cache, ArraysCache):
        return [array for array in cache.cache if array is not None]
    if isinstance(cache, LayerCache):
        return [mx.array(cache.offset), *cache.rows.used().values()]
    keys, values = cache.keys_and_values()
    if isinstance(cache, RotatingKVCache):
        keys, values = (cache._temporal_order(array)[:, :, -cache.max_size :] for array in (keys, values))
    if isinstance(cache, ChunkedKVCache):
        visible = cache.offset % cache.chunk_size
        keys, values = (array[:, :, array.shape[2] - visible :] for array in (keys, values))
    return [mx.array(cache.offset), keys, values]


def test_a_cache_without_rows_leaves_blocks_that_say_what_was_seen():
    cache = ArraysCache(size=2)
    feed(cache, mx.float32)
    blocks = serialize.to_blocks(serialize.token_rows([cache]), 32, TOKENS, BLOCK)
    assert [(block["none:seen"].shape, block["none:seen"].nbytes) for block in blocks] == [
        ((1, 16, 0), 0), ((1, 16, 0), 0), ((1, 13, 0), 0),
    ]  # fmt: skip


def test_a_checkpoint_holds_the_window_only():
    cache = RotatingKVCache(max_size=24)
    cache.update_and_fetch(rows(500, 1, mx.float32), rows(500, 2, mx.float32))
    payload = serialize.to_checkpoint([cache])
    assert sum(array.nbytes for array in payload.values()) < 2 * 2 * 24 * 64 * 4 + 100


def test_blocks_are_copies_of_their_own():
    cache = KVCache()
    feed(cache, mx.float32)
    for block in serialize.to_blocks(serialize.token_rows([cache]), 0, TOKENS, BLOCK):
        assert all(array.flags.owndata and array.flags.c_contiguous for array in block.values())


@pytest.mark.parametrize("spoil", ["rows", "state", "mixed"])
def test_payloads_of_other_caches_are_refused_and_nothing_is_filled(spoil):
    first = [KVCache(), ArraysCache(size=2)]
    for cache in first:
        feed(cache, mx.float32)
    blocks = serialize.to_blocks(serialize.token_rows(first), 0, TOKENS, BLOCK)
    checkpoint = dict(serialize.to_checkpoint(first))
    if spoil == "rows":
        blocks = [{"7:k": block["0:k"]} for block in blocks]
    elif spoil == "mixed":
        blocks[2] = {name: array.astype(np.float64) for name, array in blocks[2].items()}
    else:
        del checkpoint["1:0.1:array"]
    second = [KVCache(), ArraysCache(size=2)]
    with pytest.raises(serialize.PayloadError, match="layer [01]"):
        fill(second, blocks, checkpoint, mx.float32)
    assert all(cache.empty() for cache in second)
