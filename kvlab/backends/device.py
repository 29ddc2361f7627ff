"""The device: its name, its memory and its cores. Nothing here imports MLX at import time."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from kvlab.counts import counted


@dataclass(frozen=True)
class DeviceMemory:
    """Memory in bytes: ``active``, ``peak`` and ``cache`` of MLX's allocator, and the size of the ``device``."""

    active: int
    peak: int
    cache: int
    device: int


def is_cpu() -> bool:
    """Return whether MLX computes on the CPU by default."""
    import mlx.core as mx

    return mx.default_device().type == mx.DeviceType.cpu  # type: ignore[attr-defined]


def computes_in_float32() -> bool:
    """Return whether half precision is computed in float32: on CPUs, BLAS has no products of half precision."""
    return is_cpu()


def is_slow_with_quantized_weights() -> bool:
    """Return whether products with quantized weights are much slower than with plain ones, as in MLX on CPUs."""
    return is_cpu()


def overlaps_with_host() -> bool:
    """Return whether the device computes while the host goes on with other work: on CPUs both share cores."""
    return not is_cpu()


def shares_memory_with_host() -> bool:
    """Return whether the host reads arrays where they are: on CPUs and Metal, not on CUDA, which moves them."""
    import mlx.core as mx

    return is_cpu() or mx.metal.is_available()


def device_name() -> str:
    """Return one line: ``gpu: Apple M3 Max`` or ``cpu: Intel(R) Xeon(R), 2 cores``."""
    import mlx.core as mx

    name = str(mx.device_info().get("device_name", "")) or platform.processor() or platform.machine()
    cores = physical_cores()
    return f"cpu: {name}, {counted(cores, 'core')}" if is_cpu() else f"gpu: {name}"


def memory() -> DeviceMemory:
    """Return the state of MLX's allocator, and the device's size (the machine's RAM on the CPU)."""
    import mlx.core as mx

    info = mx.device_info()
    # Metal gives memory_size, CUDA total_memory, and the CPU neither.
    device = info.get("memory_size") or info.get("total_memory") or ram_bytes()
    return DeviceMemory(mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory(), int(device))


def limit_cache(size: int) -> int:
    """Let MLX keep at most ``size`` bytes of freed buffers for reuse; return the limit before."""
    import mlx.core as mx

    return mx.set_cache_limit(size)


def ram_bytes() -> int:
    """Return the machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_bytes() -> int:
    """Return the bytes that this process may still allocate without swapping; a container's limit is respected.

    Where the system gives no figure (macOS), half of the physical memory.
    """
    free = ram_bytes() // 2
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, KeyError):  # absent outside a container; "max": there is no limit
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, max(0, limit - used + int(parts["inactive_file"])))  # cached files make room
    return free


@functools.cache
def physical_cores() -> int:
    """Return the number of cores that this process may use, by CPU affinity and a container's quota.

    The hyperthreads of a core count once.
    """
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
