"""The function behind ``kvlab replay``: one trace, several policies and capacities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvlab.replay.capacity import read_capacity
from kvlab.replay.errors import TraceError
from kvlab.replay.loaders import load_trace
from kvlab.replay.lru import LRU, lru_counts
from kvlab.replay.orders import policy_class
from kvlab.replay.results import ReplayResults
from kvlab.replay.stack_distances import stack_distances
from kvlab.replay.statistics import statistics
from kvlab.replay.tasks import ReplayTask, run_tasks
from kvlab.replay.trace import BlockTrace

if TYPE_CHECKING:
    from distributed import Client

DEFAULT_CAPACITIES = ("1%", "2%", "5%", "10%", "20%", "50%")


def replay(
    trace: BlockTrace | str | Path,
    replace: str | Iterable[str] = LRU,
    capacity: str | int | Iterable[str | int] = DEFAULT_CAPACITIES,
    *,
    format: str | None = None,
    plain: bool = False,
    token_bytes: int = 0,
    sample: float = 1.0,
    workers: int | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> ReplayResults:
    """Replay a trace through one tier, with each policy at each capacity.

    LRU takes one pass for all capacities; other policies are replayed once for each, in parallel processes.

    Args:
        trace: a trace, or a file that :func:`load_trace` reads.
        replace: replacement policies of the store, as a list or as text such as ``lru,sieve``.
        capacity: as :func:`read_capacity` reads them, as a list or as text such as ``1%,5%`` or ``2GB``.
        format: of the file; else its content tells.
        plain: take each block alone, without parents and at once, as other caches do.
        token_bytes: bytes of KV a token, which capacities in bytes need.
        sample: share of the blocks that policies other than LRU are replayed with; 1 is exact.
        workers: processes; else as many as there are cores.
        client: of a Dask cluster, whose workers replay in place of processes of this machine.
        progress: show a bar.

    Raises:
        TraceError: the trace, a policy, a capacity or the sample cannot be used.
    """
    loaded = trace if isinstance(trace, BlockTrace) else load_trace(trace, format)
    loaded = loaded.plain() if plain else loaded
    if not len(loaded.blocks):
        raise TraceError(f"{loaded.name} has no block: its prompts are shorter than a block, or it has no request")
    if not 0 < sample <= 1:
        raise TraceError(f"a sample of {sample:g} is impossible; write a share above 0 and up to 1, such as 0.1")
    names = list(dict.fromkeys(items(replace)))
    texts = list(dict.fromkeys(items(capacity)))
    if not names or not texts:
        raise TraceError("nothing to replay: name a policy such as lru and a capacity such as 5%")
    for name in names:
        policy_class(name)
    capacities = [read_capacity(text, loaded, token_bytes=token_bytes) for text in texts]
    tasks = [ReplayTask(name, one, sample) for name in names if name != LRU for one in capacities]
    done = (
        dict(zip(tasks, run_tasks(loaded, tasks, workers=workers, client=client, progress=progress), strict=True))
        if tasks
        else {}
    )
    curve = np.empty(0, np.int64)
    if LRU in names:
        distances = stack_distances(loaded)
        curve = distances.curve()
        lru = dict(zip(capacities, lru_counts(loaded, capacities, distances), strict=True))
    counts = tuple(
        lru[one] if name == LRU else done[ReplayTask(name, one, sample)] for name in names for one in capacities
    )
    return ReplayResults(loaded, statistics(loaded), counts, curve, token_bytes)


def items(given: str | int | Iterable[str | int]) -> list[str]:
    """Return the parts of a list, or of text with commas."""
    listed: Iterable[str | int] = (
        given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given
    )
    return [text for one in listed if (text := str(one).strip())]
