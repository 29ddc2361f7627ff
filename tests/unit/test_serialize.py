"""Stored KV comes back bit for bit, whatever the kind and the dtypes of its cache, or it is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from kvlab.caches import LayerCache, cache_loader, serialize
from kvlab.policies import Policy
from kvlab.store import Namespace, Store
from tests.store_kit import opened

TOKENS = 77
BLOCK = 16


def rows(count: int, seed: int, dtype: mx.Dtype) -> mx.array:
    if mx.issubdtype(dtype, mx.integer):
        return mx.random.randint(0, 60_000, (1, 2, count, 64), key=mx.random.key(seed)).astype(dtype)
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
        "rotated": LayerCache(Policy.parse("rotated:bits=4,v_bits=2")),
        "turboquant": LayerCache(Policy.parse("turboquant:bits=3,v_bits=1,projection=true")),
    }


def fill(caches, blocks, checkpoint):
    loader, at = cache_loader.CacheLoader(caches, TOKENS), 0
    for block in blocks:
        loader.take(block, at)
        at += next(iter(block.values())).shape[1]
    loader.finish(at, checkpoint)


def to_blocks(rows, start, end, block):
    """Blocks of rows that are computed here and now."""
    memory = {name: np.asarray(array) for name, array in serialize.as_bits(rows).items()}
    return serialize.to_blocks(memory, start, end, block)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("kind", list(make()))
def test_restored_cache_equals_the_first_one_now_and_later(kind, dtype):
    first, second = make()[kind], make()[kind]
    feed(first, dtype)
    blocks = to_blocks(serialize.token_rows([first]), 0, TOKENS, BLOCK)
    assert [next(iter(block.values())).shape[1] for block in blocks] == [16, 16, 16, 16, 13]
    fill([second], blocks, serialize.to_checkpoint([first]))
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


def test_cache_without_rows_gives_blocks_without_bytes():
    cache = ArraysCache(size=2)
    feed(cache, mx.float32)
    blocks = to_blocks(serialize.token_rows([cache]), 32, TOKENS, BLOCK)
    assert [(block["none:seen:uint8"].shape, block["none:seen:uint8"].nbytes) for block in blocks] == [
        ((1, 16, 0), 0), ((1, 16, 0), 0), ((1, 13, 0), 0),
    ]  # fmt: skip


def test_checkpoint_of_a_window_holds_its_rows_only():
    cache = RotatingKVCache(max_size=24)
    cache.update_and_fetch(rows(500, 1, mx.float32), rows(500, 2, mx.float32))
    payload = serialize.to_checkpoint([cache])
    assert sum(array.nbytes for array in payload.values()) < 2 * 2 * 24 * 64 * 4 + 100


def test_every_block_owns_its_memory():
    cache = KVCache()
    feed(cache, mx.float32)
    for block in to_blocks(serialize.token_rows([cache]), 0, TOKENS, BLOCK):
        assert all(array.flags.owndata and array.flags.c_contiguous for array in block.values())


@pytest.mark.parametrize("spoil", ["rows", "state", "mixed", "no dtype", "wrong dtype", "unknown dtype"])
def test_loader_refuses_payloads_of_other_caches_and_fills_nothing(spoil):
    first = [KVCache(), ArraysCache(size=2)]
    for cache in first:
        feed(cache, mx.float32)
    blocks = to_blocks(serialize.token_rows(first), 0, TOKENS, BLOCK)
    checkpoint = dict(serialize.to_checkpoint(first))
    if spoil == "rows":
        blocks = [{"7:k:float32": block["0:k:float32"]} for block in blocks]
    elif spoil == "no dtype":  # as an older format named them
        blocks = [{name.removesuffix(":float32"): array for name, array in block.items()} for block in blocks]
    elif spoil == "wrong dtype":
        blocks = [{name.replace("float32", "bfloat16"): array for name, array in block.items()} for block in blocks]
    elif spoil == "unknown dtype":
        checkpoint["1:0.1:float7"] = checkpoint.pop("1:0.1:float32")
    elif spoil == "mixed":
        blocks[2] = {name: array.astype(np.float64) for name, array in blocks[2].items()}
    else:
        del checkpoint["1:0.1:float32"]
    second = [KVCache(), ArraysCache(size=2)]
    with pytest.raises(serialize.PayloadError, match="layer [01]"):
        fill(second, blocks, checkpoint)
    assert all(cache.empty() for cache in second)


def test_a_layer_that_its_model_never_uses_stays_empty():
    first = [KVCache(), KVCache(), KVCache()]
    for cache in (first[0], first[2]):
        feed(cache, mx.float32)
    second = [KVCache(), KVCache(), KVCache()]
    fill(second, to_blocks(serialize.token_rows(first), 0, TOKENS, BLOCK), None)
    assert [cache.offset for cache in second] == [TOKENS, 0, TOKENS]


def kv_cache(keys: mx.Dtype, values: mx.Dtype) -> KVCache:
    cache = KVCache()
    cache.update_and_fetch(rows(TOKENS, 1, keys), rows(TOKENS, 2, values))
    return cache


def arrays_cache(*dtypes: mx.Dtype) -> ArraysCache:
    cache = ArraysCache(size=len(dtypes))
    for i, dtype in enumerate(dtypes):
        cache[i] = rows(3, i, dtype)
    return cache


def quantized_cache(dtype: mx.Dtype) -> LayerCache:
    cache = LayerCache(Policy.parse("quantized:bits=4"))
    feed(cache, dtype)
    return cache


CACHES = {
    "float32": lambda: [kv_cache(mx.float32, mx.float32)],
    "float16": lambda: [kv_cache(mx.float16, mx.float16)],
    "bfloat16": lambda: [kv_cache(mx.bfloat16, mx.bfloat16)],
    "uint16": lambda: [kv_cache(mx.uint16, mx.uint16)],
    "uint32": lambda: [kv_cache(mx.uint32, mx.uint32)],
    "packed": lambda: [quantized_cache(mx.bfloat16), quantized_cache(mx.float32)],
    "mixed in one layer": lambda: [kv_cache(mx.bfloat16, mx.float32), kv_cache(mx.uint16, mx.bfloat16)],
    "mixed state": lambda: [arrays_cache(mx.float32, mx.bfloat16, mx.uint16), kv_cache(mx.bfloat16, mx.float16)],
}
EMPTY = {LayerCache: lambda: LayerCache(Policy.parse("quantized:bits=4")), KVCache: KVCache}
NS = Namespace("model", "", "float32", BLOCK)
PROMPT = list(range(TOKENS))


def restored(store: Store, caches: Sequence[Any]) -> tuple[list[Any], Mapping[str, int]]:
    """New caches that hold what the store has of ``PROMPT``, and the tokens by tier that they came from."""
    checkpoint = serialize.has_state(caches)
    fresh = [ArraysCache(size=len(one.cache)) if isinstance(one, ArraysCache) else EMPTY[type(one)]() for one in caches]
    match = store.match(NS, PROMPT, checkpoint=checkpoint)
    loader = cache_loader.CacheLoader(fresh, TOKENS)
    match = store.read_into(match, loader)
    loader.finish(match.tokens, store.read_checkpoint(match) if checkpoint else None)
    assert match.tokens == TOKENS
    return fresh, match.by_tier


@pytest.mark.parametrize("kind", list(CACHES))
def test_store_gives_back_every_array_with_its_own_dtype(tmp_path: Path, kind: str) -> None:
    caches = CACHES[kind]()
    blocks = to_blocks(serialize.token_rows(caches), 0, TOKENS, BLOCK)
    with opened(tmp_path, block=BLOCK) as store:
        store.put(NS, PROMPT, 0, blocks)
        if serialize.has_state(caches):
            store.put_checkpoint(NS, PROMPT, serialize.to_checkpoint(caches))
        results = [restored(store, caches)]
    with opened(tmp_path, block=BLOCK) as store:  # after a restart: from SSD, the second time by way of RAM
        results += [restored(store, caches) for _ in range(3)]
    assert [set(by_tier) for _, by_tier in results] == [{"ram"}, {"ssd"}, {"ssd"}, {"ram"}]
    for fresh, _ in results:
        for cache, copy in zip(caches, fresh, strict=True):
            for a, b in zip(seen(cache), seen(copy), strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape) and bits(a) == bits(b)


def bits(array: mx.array) -> bytes:
    [bits] = serialize.as_bits({"0:k": array}).values()
    return np.array(bits).tobytes()
