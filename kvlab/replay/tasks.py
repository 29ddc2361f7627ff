"""Replay several policies and capacities in parallel processes, with one progress bar."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from tqdm.auto import tqdm

from kvlab.replay.capacity import Capacity
from kvlab.replay.counts import ReplayCounts
from kvlab.replay.distributed_tasks import run_on, without_trace
from kvlab.replay.orders import policy_class
from kvlab.replay.sampling import simulate_sampled
from kvlab.replay.simulation import Told, simulate
from kvlab.replay.trace import BlockTrace

if TYPE_CHECKING:
    from distributed import Client

MIN_PARALLEL_BLOCKS = 500_000
"""Less work than this, in blocks times tasks, is done before other processes have started."""
POLL_S = 0.2


class Counts(Protocol):
    """Counts of a replay: a dataclass of which one field is the trace."""

    @property
    def trace(self) -> BlockTrace:
        """Return what was replayed."""
        ...


C = TypeVar("C", bound=Counts, covariant=True)


class Task(Protocol[C]):
    """One replay of a trace: a frozen value, which another process can get."""

    @property
    def replace(self) -> str:
        """Return the name of the policy."""
        ...

    @property
    def rate(self) -> float:
        """Return the share of the blocks that is replayed."""
        ...

    def run(self, trace: BlockTrace, told: Told) -> C:
        """Replay it."""
        ...


@dataclass(frozen=True)
class ReplayTask:
    """Names one replay: a policy at a capacity, of a share of the blocks (1: all)."""

    replace: str
    capacity: Capacity
    rate: float = 1.0

    def run(self, trace: BlockTrace, told: Told) -> ReplayCounts:
        """Replay it."""
        if self.rate < 1:
            return simulate_sampled(trace, self.replace, self.capacity, self.rate, told)
        return simulate(trace, self.replace, self.capacity, told)


def run_tasks(
    trace: BlockTrace,
    tasks: Sequence[Task[C]],
    *,
    workers: int | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> list[C]:
    """Replay all tasks; the counts are in their order.

    Args:
        workers: processes; else as many as there are cores. Policies that were defined outside of kvlab are replayed in
            this process, since others cannot know them.
        client: of a Dask cluster, whose workers replay in place of processes of this machine.
        progress: show a bar on stderr.
    """
    count = min(len(tasks), workers or os.cpu_count() or 1)
    small = len(trace.blocks) * sum(task.rate for task in tasks) < MIN_PARALLEL_BLOCKS and workers is None
    own = [task for task in tasks if not policy_class(task.replace).__module__.startswith("kvlab.")]
    with tqdm(
        total=len(trace) * len(tasks),
        desc="replay",
        unit="request",
        file=sys.stderr,
        disable=not progress,
        mininterval=0.5,
    ) as bar:
        if client is None and (count <= 1 or small):
            return [task.run(trace, bar.update) for task in tasks]
        others = [task for task in tasks if task not in own]
        done: dict[Task[C], C] = {}
        if others and client is not None:
            done = dict(zip(others, run_on(client, trace, others, bar.update), strict=True))
        elif others:
            done = dict(zip(others, _in_processes(trace, others, count, bar.update), strict=True))
        return [done[task] if task in done else task.run(trace, bar.update) for task in tasks]


def _in_processes(trace: BlockTrace, tasks: Sequence[Task[C]], count: int, told: Told) -> list[C]:
    context = multiprocessing.get_context("spawn")  # a fork beside MLX's threads may hang
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="kvlab-replay-") as folder:
        _save(trace, Path(folder))
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(folder, queue))
        with pool:
            futures: list[Future[tuple[Any, dict[str, Any]]]] = [pool.submit(_run, task) for task in tasks]
            try:
                pending: set[Future[tuple[Any, dict[str, Any]]]] = set(futures)
                while pending:
                    _, pending = wait(pending, timeout=POLL_S)
                    while not queue.empty():
                        told(queue.get())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            done = [future.result() for future in futures]
            return [kind(trace=trace, **values) for kind, values in done]


_here: dict[str, Any] = {}
"""In a worker: the trace and where progress is told. A process pool's initializer can leave them nowhere else."""


def _begin(folder: str, queue: Any) -> None:
    """Open the trace in a worker."""
    _here["trace"], _here["told"] = _opened(Path(folder)), queue.put


def _run(task: Task[Any]) -> tuple[Any, dict[str, Any]]:
    """Run a task here; the trace stays."""
    return without_trace(task, _here["trace"], _here["told"])


def _arrays(trace: BlockTrace) -> dict[str, np.ndarray]:
    values = {field.name: getattr(trace, field.name) for field in fields(trace)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _save(trace: BlockTrace, folder: Path) -> None:
    for name, array in _arrays(trace).items():
        np.save(folder / f"{name}.npy", array)
    (folder / "trace.txt").write_text(f"{trace.block_tokens}\n{trace.name}", encoding="utf-8")


def _opened(folder: Path) -> BlockTrace:
    """Map the arrays of a trace, so that all workers share their memory."""
    block, _, name = (folder / "trace.txt").read_text(encoding="utf-8").partition("\n")
    arrays: dict[str, Any] = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    return BlockTrace(name=name, block_tokens=int(block), **arrays)
