"""Traces of unit size through replacement policies, kvlab's and libCacheSim's, and the saved numbers of their misses.

``python -m tests.replacement_kit`` counts anew and writes ``replacement_misses.json``; it needs libCacheSim and the
traces of ``../shared``.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvlab.replay.belady import Belady, Future
from kvlab.store.replacement import Replacement, make
from tests.replacement_reference import LIBCACHESIM, REFERENCES

SHARED = Path(__file__).parents[2] / "shared" / "data"
SAVED = Path(__file__).with_name("replacement_misses.json")
RANDOM = ("random-1@20", "random-2@64", "random-3@150")
SHARED_TRACES = ("multi1@500", "multi1@1000", "cpp@100", "gli@1000", "ps@500")
CASES = (*RANDOM, *SHARED_TRACES)
"""A trace and a capacity each; ``random-N`` needs no file."""


def policy_of(name: str, trace: Sequence[int], capacity: int) -> tuple[Replacement, Future]:
    """Return a policy and the future of a trace, which only ``belady`` looks at."""
    future = Future([key] for key in trace)
    return (Belady(capacity, future) if name == "belady" else make(name, capacity)), future


def misses(name: str, trace: Sequence[int], capacity: int, *, expects: bool = True) -> int:
    """Return the misses of kvlab's policy; with ``expects``, it is told of a key before space is made, as ARC wants."""
    policy, future = policy_of(name, trace, capacity)
    count = 0
    for key in trace:
        future.advance()
        if key in policy:
            policy.touch(key)
            continue
        count += 1
        if expects and hasattr(policy, "expect"):
            policy.expect(key)
        while len(policy) >= capacity:
            policy.remove(policy.victim())
        policy.admit(key)
    return count


def libcachesim_misses(library: Any, name: str, trace: Sequence[int], capacity: int) -> int:
    """Return the misses of libCacheSim's policy, ``library`` being its module. Keys are above 0."""
    cache = getattr(library, LIBCACHESIM[name][0])(cache_size=capacity, hashpower=16)
    future = Future([key] for key in trace)
    request = library.Request()
    request.obj_size = 1
    count = 0
    for now, key in enumerate(trace):
        request.obj_id = key
        request.next_access_vtime = int(min(future.next_use(key, now + 1), 2**62))
        count += not cache.get(request)
    return count


def random_trace(seed: int, length: int = 3000, keys: int = 300) -> list[int]:
    """Return keys from 1 on, which are the more skewed the larger the seed's remainder by 3 is."""
    chance = random.Random(seed)
    return [1 + int(keys * chance.random() ** (1 + seed % 3)) for _ in range(length)]


def trace_of(case: str) -> list[int]:
    """Return the trace of a case. Raises ``FileNotFoundError`` for a shared one where these are absent."""
    name = case.partition("@")[0]
    if name.startswith("random-"):
        return random_trace(int(name.removeprefix("random-")))
    with gzip.open(SHARED / "caffeine-lirs" / f"{name}.trace.gz", "rt") as file:
        return [int(line) + 1 for line in file if line.strip().isdigit()]


def capacity_of(case: str) -> int:
    return int(case.partition("@")[2])


def saved() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SAVED.read_text())
    return found


def _counted(library: Any) -> Iterator[tuple[str, dict[str, dict[str, int]]]]:
    for case in CASES:
        trace, capacity = trace_of(case), capacity_of(case)
        ours = {name: misses(name, trace, capacity) for name in REFERENCES}
        able = [name for name, (_, _, least) in LIBCACHESIM.items() if capacity >= least]
        theirs = {name: libcachesim_misses(library, name, trace, capacity) for name in able}
        yield case, {"kvlab": ours, "libcachesim": theirs}


def main() -> None:
    import libcachesim

    document = {"libcachesim": libcachesim.__version__, "misses": dict(_counted(libcachesim))}
    SAVED.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
