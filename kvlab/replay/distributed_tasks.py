"""Replay tasks on the workers of a Dask cluster, which get the trace from this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from kvlab.counts import counted
from kvlab.replay.errors import TraceError
from kvlab.replay.simulation import Told
from kvlab.replay.trace import BlockTrace

if TYPE_CHECKING:
    from distributed import Client

MAX_SENT = 5
"""Times that a trace is sent to the workers: it is lost with the only one that has it yet."""


def run_on(client: Client, trace: BlockTrace, tasks: Sequence[Any], told: Told) -> list[Any]:
    """Run tasks on the workers of ``client``; the counts are in their order, and equal those of this process.

    Raises ``TraceError`` where workers die again and again, or the scheduler is gone, and what a task raises.
    """
    done: dict[int, Any] = {}
    for _ in range(MAX_SENT):
        _run_missing(client, trace, tasks, done, told)
        if len(done) == len(tasks):
            return [done[at] for at in range(len(tasks))]
        if client.status not in ("running", "connecting"):
            raise TraceError("the Dask scheduler is gone; replay again, or without --scheduler")
    raise TraceError(
        f"{counted(len(tasks) - len(done), 'replay')} of {len(tasks)} did not end: the workers that had the trace died "
        f"{MAX_SENT} times; they may have too little memory for it"
    )


def _run_missing(client: Client, trace: BlockTrace, tasks: Sequence[Any], done: dict[int, Any], told: Told) -> None:
    """Send the trace, and run the tasks that are not done. A task whose trace was lost stays missing."""
    from distributed import CancelledError, KilledWorker, as_completed

    sent = client.scatter(trace, hash=False)
    missing = [at for at in range(len(tasks)) if at not in done]
    futures = {client.submit(without_trace, tasks[at], sent, pure=False, retries=0): at for at in missing}
    try:
        for future in as_completed(list(futures)):
            at = futures[future]
            try:
                kind, values = future.result()
            except CancelledError:
                continue
            except KilledWorker as error:
                raise TraceError(
                    f"the replay of {tasks[at].replace} ended several workers; they may have too little memory for it"
                ) from error
            done[at] = kind(trace=trace, **values)
            told(len(trace))
    finally:
        client.cancel(list(futures))


def without_trace(task: Any, trace: BlockTrace, told: Told = lambda _: None) -> tuple[Any, dict[str, Any]]:
    """Run a task; return the class of its counts and their fields, without the trace, which the asker has."""
    counts = task.run(trace, told)
    own = {field.name: getattr(counts, field.name) for field in fields(counts) if field.name != "trace"}
    return type(counts), own
