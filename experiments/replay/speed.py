"""How quick is a replay? Beside libCacheSim's Python binding, and as a trace grows tenfold.

    PYTHONPATH=. python experiments/replay/speed.py --out experiments/rows/replay_speed.json [--mooncake FILE]

Part one: single blocks of unit size, a tenth of a trace and all of it. kvlab replays it with ``simulate``; libCacheSim
is called once a block from Python (``get``), and once for all of it (``process_trace``, a loop in C). The three take
turns in one process, so that they share what else the machine does; figures are medians over the rounds. Its tables are
made for the trace, not for its default of 16 million keys. Misses are compared, too.

Part two: requests with chains. The stack distances of LRU at all capacities from one pass, and a replay through the
live store's tier at one capacity. Mooncake's trace is copied with ids and times of each copy's own until it has a
million requests, so that the footprint grows as well; the longest is not replayed block by block, for memory's sake.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import libcachesim
import numpy as np

from kvlab.provenance import document, provenance
from kvlab.replay import BlockTrace, block_trace, load_trace, read_capacity, simulate, stack_distances

POLICIES = {
    "lru": "LRU", "lfu": "LFU", "sieve": "Sieve", "s3fifo": "S3FIFO", "arc": "ARC", "belady": "Belady",
}  # fmt: skip
SHARE = "5%"
GROWTH = 10
HASHPOWER = 20
NEVER = 2**62
RECORD = struct.Struct("<IQIq")
"""Of libCacheSim's oracleGeneral format: time, key, size, number of the key's next use."""


def zipf(length: int, seed: int = 0) -> list[int]:
    """Return keys from 1 on, a tenth as many as uses, of which the n-th is used 1/n as often as the first."""
    draw = np.random.default_rng(seed)
    keys = length // 10
    chances = 1 / np.arange(1, keys + 1)
    return [int(key) + 1 for key in draw.choice(keys, length, p=chances / chances.sum())]


def next_uses(keys: Sequence[int]) -> list[int]:
    later: dict[int, int] = {}
    found = [NEVER] * len(keys)
    for at in range(len(keys) - 1, -1, -1):
        found[at] = later.get(keys[at], NEVER)
        later[keys[at]] = at
    return found


class Uses:
    """Single blocks as both programs take them."""

    def __init__(self, name: str, keys: Sequence[int], folder: Path) -> None:
        self.name, self.keys, self.next = name, list(keys), next_uses(keys)
        self.trace = block_trace(name, 1, [[key] for key in keys])
        self.capacity = read_capacity(SHARE, self.trace)
        self.file = folder / f"{name}-{len(keys)}.oracleGeneral"
        pairs = enumerate(zip(self.keys, self.next, strict=True))
        self.file.write_bytes(b"".join(RECORD.pack(at, key, 1, use) for at, (key, use) in pairs))

    def cache(self, policy: str) -> Any:
        return getattr(libcachesim, POLICIES[policy])(cache_size=self.capacity.amount, hashpower=HASHPOWER)

    def kvlab(self, policy: str) -> int:
        return len(self.keys) - int(simulate(self.trace, policy, self.capacity).hit_blocks.sum())

    def get(self, policy: str) -> int:
        cache, request, misses = self.cache(policy), libcachesim.Request(), 0
        request.obj_size = 1
        for key, use in zip(self.keys, self.next, strict=True):
            request.obj_id, request.next_access_vtime = key, use
            misses += not cache.get(request)
        return misses

    def process_trace(self, policy: str) -> int:
        options = libcachesim.ReaderInitParam(ignore_obj_size=True)
        reader = libcachesim.TraceReader(str(self.file), libcachesim.TraceType.ORACLE_GENERAL_TRACE, options)
        missed, _ = self.cache(policy).process_trace(reader)
        return round(missed * len(self.keys))


def timed(work: Callable[[], int]) -> tuple[float, int]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def beside(uses: Uses, rounds: int) -> list[dict[str, Any]]:
    """Rows of one trace: misses and microseconds a use of each program, and their ratios."""
    rows = []
    for policy in POLICIES:
        taken: dict[str, list[float]] = {"kvlab": [], "get": [], "process_trace": []}
        misses = {}
        for _ in range(rounds):
            for program in taken:
                seconds, misses[program] = timed(lambda program=program, policy=policy: getattr(uses, program)(policy))
                taken[program].append(1e6 * seconds / len(uses.keys))
        about = {"policy": policy, "workload": uses.name, "uses": len(uses.keys), "capacity": uses.capacity.amount}
        for program, values in taken.items():
            row = {**about, "of": program}
            rows.append({**row, "metric": "us_per_use", "value": statistics.median(values), "unit": "us"})
            rows.append({**row, "metric": "misses", "value": misses[program], "unit": "blocks"})
        for program in ("get", "process_trace"):
            ratios = [ours / theirs for ours, theirs in zip(taken["kvlab"], taken[program], strict=True)]
            value = statistics.median(ratios)
            rows.append({**about, "metric": "ratio", "value": value, "unit": "x", "of": "kvlab", "to": program})
        print(policy, uses.name, len(uses.keys), {k: round(statistics.median(v), 3) for k, v in taken.items()}, misses)
    return rows


def copies(trace: BlockTrace, count: int, seed: int = 0) -> BlockTrace:
    """Return a trace with ``count`` copies of each request, each copy with blocks of its own and a start of its own."""
    span, draw = float(trace.times[-1] - trace.times[0]), random.Random(seed)
    starts = [draw.uniform(0, span * (count - 1)) for _ in range(count)]
    chains = [trace.chain(request) for request in range(len(trace))]
    return block_trace(
        f"{trace.name} x {count}",
        trace.block_tokens,
        [chain.astype(np.int64) + copy * trace.unique for copy in range(count) for chain in chains],
        times=np.concatenate([trace.times + start for start in starts]),
        input_tokens=np.tile(trace.input_tokens, count),
    )


def chained(trace: BlockTrace, rounds: int, *, replays: bool = True) -> list[dict[str, Any]]:
    """Rows of a trace with chains: requests a minute of LRU, at all capacities and with ``replays`` at one."""
    works: dict[str, Callable[[], Any]] = {"all capacities": lambda: stack_distances(trace).curve()}
    if replays:
        works[SHARE] = lambda: simulate(trace, "lru", read_capacity(SHARE, trace))
    rows = []
    for name, work in works.items():
        seconds = statistics.median(timed(lambda work=work: 0 if work() is None else 1)[0] for _ in range(rounds))
        about = {"policy": "lru", "workload": trace.name, "requests": len(trace), "uses": len(trace.blocks)}
        per_minute = 60 * len(trace) / seconds
        row = {**about, "capacity": name}
        rows.append({**row, "metric": "requests_per_minute", "value": per_minute, "unit": "requests/min"})
        rows.append({**row, "metric": "us_per_use", "value": 1e6 * seconds / len(trace.blocks), "unit": "us"})
        print(trace.name, name, f"{per_minute:,.0f} requests/min", f"{seconds:.2f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mooncake", type=Path, help="conversation_trace.jsonl.xz; else only drawn keys")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uses", type=int, default=1_000_000, help="of drawn keys")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of copies of Mooncake's")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for length in (options.uses // GROWTH, options.uses):
            rows += beside(Uses("zipf", zipf(length), folder), options.rounds)
        if options.mooncake:
            trace = load_trace(options.mooncake)
            keys = [int(key) + 1 for key in trace.blocks]
            for length in (len(keys) // GROWTH, len(keys)):
                rows += beside(Uses("mooncake", keys[:length], folder), options.rounds)
            for count in (1, GROWTH, math.ceil(options.requests / len(trace))):
                made_trace = trace if count == 1 else copies(trace, count)
                rows += chained(made_trace, options.rounds, replays=count <= GROWTH)
    options.out.write_text(json.dumps(document("replay", rows, provenance()), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
