"""Whether other programs compute meanwhile: their share of the CPU time that this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil

MIN_WALL_S = 0.3
"""Systems count CPU time in steps of 10 ms: over a shorter time a share says nothing."""


@dataclass(frozen=True)
class CpuSeconds:
    """CPU seconds since the start of the machine: of all programs, of this process, and all that there were."""

    busy: float
    own: float
    total: float
    cpus: int


def cpu_seconds() -> CpuSeconds | None:
    """Read the counters of the CPUs that this process may run on; None where the system does not tell them.

    Own time is that of this process and of its ended children. Time that a hypervisor gives to others counts as busy.
    """
    try:
        each = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError, psutil.Error):
        return None
    allowed = getattr(os, "sched_getaffinity", lambda _: range(len(each)))(0)
    mine = [each[cpu] for cpu in allowed if cpu < len(each)]
    if not mine:
        return None
    known = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(cpu, name, 0.0) for cpu in mine for name in known)
    idle = sum(getattr(cpu, name, 0.0) for cpu in mine for name in ("idle", "iowait"))
    return CpuSeconds(busy, sum(os.times()[:4]), busy + idle, len(mine))


class LoadMeter:
    """Measures, from its making on, the share of the CPU time that other programs take."""

    def __init__(self, read: Callable[[], CpuSeconds | None] = cpu_seconds) -> None:
        self._read, self._start = read, read()

    def others(self) -> float | None:
        """Return the share, from 0 to 1; None where it is not known or too little time has passed."""
        start, now = self._start, self._read()
        if start is None or now is None or now.total - start.total < MIN_WALL_S * now.cpus:
            return None
        others = (now.busy - start.busy) - (now.own - start.own)
        return round(min(1.0, max(0.0, others / (now.total - start.total))), 3)
