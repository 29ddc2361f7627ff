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


def computes_in_float32() -> bool:
    """Whether half precision is computed in float32: on CPUs, products of half precision never reach BLAS."""
    return is_cpu()


def is_slow_with_quantized_weights() -> bool:
    """Whether products with quantized weights are much slower than with plain ones, as MLX computes them on CPUs."""
    return is_cpu()


def overlaps_with_host() -> bool:
    """Whether a forward pass is computed beside the work of the host; a CPU shares its cores between both."""
    return not is_cpu()


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


def available_bytes() -> int:
    """Memory that this process may still take without swapping; a container's limit is respected.

    Where the system does not say (macOS), half of what there is.
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
