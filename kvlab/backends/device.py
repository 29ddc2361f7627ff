"""The device: its name, its memory and its cores. Nothing here imports MLX at import time."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. ``active``, ``peak`` and ``cache`` are MLX's allocator; ``device`` is what the device has in all."""

    active: int
    peak: int
    cache: int
    device: int


def is_cpu() -> bool:
    """Whether MLX computes on the CPU by default."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu  # type: ignore[attr-defined]


def device_name() -> str:
    """One line: ``gpu: Apple M3 Max`` or ``cpu: Intel(R) Xeon(R), 2 cores``."""
    import mlx.core as mx

    name = str(mx.device_info().get("device_name", "")) or platform.processor() or platform.machine()
    cores = physical_cores()
    return f"cpu: {name}, {cores} core{'s' * (cores > 1)}" if is_cpu() else f"gpu: {name}"


def memory() -> DeviceMemory:
    """MLX's allocator now, and the device's size (the machine's RAM on the CPU)."""
    import mlx.core as mx

    info = mx.device_info()
    # Metal says memory_size, CUDA total_memory; the CPU says nothing.
    device = info.get("memory_size") or info.get("total_memory") or ram_bytes()
    return DeviceMemory(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory(), int(device))


def limit_cache(size: int) -> int:
    """Let MLX keep at most ``size`` bytes of freed buffers for reuse; the limit before is returned."""
    import mlx.core as mx

    return mx.set_cache_limit(size)


def ram_bytes() -> int:
    """The machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def physical_cores() -> int:
    """Cores this process may use: hyperthreads count once, and CPU affinity and a container's quota are respected."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    cores = len(siblings)
    with contextlib.suppress(OSError, ValueError):  # absent outside a container, and "max" where there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)
