"""Joining and leaving a batch: what one sequence more costs a batch of 4 and a batch of 64."""

from __future__ import annotations

import statistics
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache, KVCache

from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.caches import LayerCache
from kvlab.models import ModelSource
from kvlab.policies import Policy

SHAPE = (2, 64)
"""KV heads and width, float32."""
LAYERS = 6
OWN = 256
SIZES = (4, 64)


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    rounds: int = 15,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows per library: ``join_ms`` into, and ``leave_ms`` out of, batches of 4 and 64 sequences of 256 tokens in six
    layers, medians; and the ``ratio`` of the larger batch to the smaller. ``model`` is not used.
    """
    mx.random.seed(seed)
    rows: list[dict[str, Any]] = []
    libraries = (("kvlab", _ours, _our_batch), ("mlx-lm", _theirs, _their_batch))
    with BenchSession("join", seconds, clock=clock) as session:
        for (library, one, many), share in session.parts(libraries):
            times: dict[tuple[str, int], list[float]] = {}
            for _ in session.rounds(rounds, share, {"policy": library, "workload": "join"}, warm_up=False):
                for size in SIZES:
                    batches = [many([one() for _ in range(size)]) for _ in range(LAYERS)]
                    _step(batches, size)
                    joining = [many([one()]) for _ in range(LAYERS)]
                    times.setdefault(("join_ms", size), []).append(_join(batches, joining, size))
                    times.setdefault(("leave_ms", size), []).append(_leave(batches, size))
            rows += _rows_of(library, times)
        return rows + session.skipped


def _rows_of(library: str, times: dict[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (metric, size), values in times.items():
        about = {"policy": library, "workload": "join", "n": size}
        rows.append({**about, "metric": metric, "value": statistics.median(values), "unit": "ms"})
    for metric in ("join_ms", "leave_ms"):
        small, large = (statistics.median(times[metric, size]) for size in SIZES)
        ratio = {"metric": "ratio", "value": large / small, "unit": "x", "of": f"{metric} at {SIZES[1]}"}
        rows.append({"policy": library, "workload": "join", **ratio, "to": f"at {SIZES[0]}"})
    return rows


def _rows(count: int, tokens: int) -> mx.array:
    return mx.random.normal((count, SHAPE[0], tokens, SHAPE[1]))


def _ours() -> LayerCache:
    cache = LayerCache(Policy())
    cache.restore({"k": _rows(1, OWN), "v": _rows(1, OWN)})
    mx.eval(cache.state)
    return cache


def _our_batch(caches: list[LayerCache]) -> Any:
    return LayerCache.merge(caches)


def _theirs() -> KVCache:
    cache = KVCache()
    cache.update_and_fetch(_rows(1, OWN), _rows(1, OWN))
    mx.eval(cache.keys, cache.values)
    return cache


def _their_batch(caches: list[KVCache]) -> Any:
    batch = BatchKVCache.merge(caches)
    mx.eval(batch.state)
    return batch


def _step(batches: list[Any], size: int) -> float:
    """Seconds to append one token in all layers."""
    keys = _rows(size, 1)
    mx.eval(keys)
    started = time.perf_counter()
    for batch in batches:
        batch.update_and_fetch(keys, keys)
    mx.eval([batch.state for batch in batches])
    return time.perf_counter() - started


def _join(batches: list[Any], joining: list[Any], size: int) -> float:
    """Milliseconds that joining adds to a step."""
    plain = statistics.median(_step(batches, size) for _ in range(3))
    started = time.perf_counter()
    for batch, one in zip(batches, joining, strict=True):
        batch.extend(one)
    mx.eval([batch.state for batch in batches])
    return 1e3 * (time.perf_counter() - started + _step(batches, size + 1) - plain)


def _leave(batches: list[Any], size: int) -> float:
    """Milliseconds that leaving adds to a step."""
    plain = statistics.median(_step(batches, size + 1) for _ in range(3))
    started = time.perf_counter()
    for batch in batches:
        batch.filter([i for i in range(size + 1) if i != 1])
    mx.eval([batch.state for batch in batches])
    return 1e3 * (time.perf_counter() - started + _step(batches, size) - plain)
