"""The function behind ``kvlab replay --ram --ssd``: one trace through RAM over SSD, at several sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvlab.policies import parse_bytes
from kvlab.replay.capacity import Capacity, read_capacity
from kvlab.replay.errors import TraceError
from kvlab.replay.loaders import load_trace
from kvlab.replay.lru import LRU
from kvlab.replay.orders import policy_class
from kvlab.replay.replaying import items
from kvlab.replay.simulation import Told
from kvlab.replay.statistics import statistics
from kvlab.replay.tasks import run_tasks
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.replay.tiered_results import DEFAULT_ENDURANCE_BYTES, TieredResults
from kvlab.replay.tiered_simulation import RestoreRule, simulate_tiers
from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed, read_speed

if TYPE_CHECKING:
    from distributed import Client

ALWAYS, AUTO = "always", "auto"
NO_SSD = "0"


@dataclass(frozen=True)
class TieredTask:
    """Names one replay through RAM over SSD."""

    replace: str
    ram: Capacity
    ssd: Capacity | None
    rule: RestoreRule | None = None
    admit: int = 1
    rate: float = 1.0

    def run(self, trace: BlockTrace, told: Told) -> TieredCounts:
        """Replay it."""
        return simulate_tiers(trace, self.replace, self.ram, self.ssd, rule=self.rule, admit=self.admit, told=told)


def replay_tiers(
    trace: BlockTrace | str | Path,
    ram: str | int | Iterable[str | int],
    ssd: str | int | Iterable[str | int] = NO_SSD,
    replace: str | Iterable[str] = LRU,
    *,
    format: str | None = None,
    token_bytes: int = 0,
    cost: Speed | str | Path | None = None,
    restore: str = ALWAYS,
    admit: int = 1,
    endurance: str | int = DEFAULT_ENDURANCE_BYTES,
    concurrency: int | None = None,
    workers: int | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> TieredResults:
    """Replay a trace through RAM over SSD, with each policy at each pair of sizes.

    Args:
        trace: a trace, or a file that :func:`load_trace` reads.
        ram, ssd: capacities as :func:`read_capacity` reads them, as a list or as text such as ``2GB,8GB``; an SSD of
            ``0`` is none.
        replace: replacement policies of both tiers, as a list or as text.
        format: of the file; else its content tells.
        token_bytes: bytes of KV a token; else those that ``cost`` says.
        cost: how quick the machine and the model are, as :func:`kvlab.speed.read_speed` reads it; gives waits.
        restore: ``always``, or ``auto``: compute again what that has sooner.
        admit: uses after which a block may be written to SSD.
        endurance: bytes that may be written to the drive, such as ``600TB``.
        concurrency: requests that are served side by side; else one after the other, and answers hold nobody up.
        workers: processes; else as many as there are cores.
        client: of a Dask cluster, whose workers replay in place of processes of this machine.
        progress: show a bar.

    Raises:
        TraceError: the trace, a policy or a capacity cannot be used. SpeedError: the cost cannot.
    """
    loaded = trace if isinstance(trace, BlockTrace) else load_trace(trace, format)
    if not len(loaded.blocks):
        raise TraceError(f"{loaded.name} has no block: its prompts are shorter than a block, or it has no request")
    speed = cost if isinstance(cost, Speed) or cost is None else read_speed(cost)
    token_bytes = token_bytes or (speed.token_bytes if speed else 0)
    rule = restore_rule(restore, speed, token_bytes)
    if admit < 1:
        raise TraceError(f"admit={admit} is no number of uses; write 1 or more")
    if concurrency is not None and concurrency < 1:
        raise TraceError(f"concurrency={concurrency} is no number of requests; write 1 or more")
    names = list(dict.fromkeys(items(replace)))
    for name in names:
        policy_class(name)
    pairs = [
        (_read(one, loaded, token_bytes), _read(other, loaded, token_bytes))
        for one in items(ram)
        for other in items(ssd)
    ]
    tasks = [
        TieredTask(name, memory, drive, rule, admit) for name in names for memory, drive in pairs if memory is not None
    ]
    if not tasks:
        raise TraceError("nothing to replay: name a policy such as lru, and the size of RAM such as --ram 8GB")
    done = run_tasks(loaded, tasks, workers=workers, client=client, progress=progress)
    return TieredResults(
        loaded, statistics(loaded), tuple(done), token_bytes, speed, parse_bytes(endurance), concurrency
    )


def restore_rule(restore: str, speed: Speed | None, token_bytes: int) -> RestoreRule | None:
    """Return the rule that decides what is restored; None restores all. Raises ``TraceError``."""
    if speed is not None and not token_bytes:
        raise TraceError("waits need the bytes of KV a token: write --kv-bytes 131072, or kv_bytes=131072 in the cost")
    if restore == ALWAYS:
        return None
    if restore != AUTO:
        raise TraceError(f"restore={restore} is not known; write {ALWAYS} or {AUTO}")
    if speed is None:
        raise TraceError("restore=auto decides by speeds: write --cost prefill=450,ssd=3GB, or a file of speeds")
    return RestoreRule(speed, token_bytes)


def _read(text: str, trace: BlockTrace, token_bytes: int) -> Capacity | None:
    return None if text == NO_SSD else read_capacity(text, trace, token_bytes=token_bytes)
