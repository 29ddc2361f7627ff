"""Products of NumPy arrays by the BLAS that MLX's CPU build uses, on several threads at once."""

from __future__ import annotations

import ctypes
import functools
import threading
from types import TracebackType
from typing import Any

import numpy as np

from kvlab.backends.x86.blas_library import prepare, threads_in_use, use_threads

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112
"""Constants of CBLAS."""


def is_available() -> bool:
    """Return whether kvlab loaded a BLAS that can be called."""
    return _sgemm() is not None


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray, *, transpose: bool = False, add: bool = False) -> None:
    """Compute ``out = a @ b``, or ``a @ b.T`` with ``transpose``; ``add`` adds to ``out``. Releases Python's lock.

    All arrays are float32 ``[rows, columns]``, with contiguous rows at equal distances. Raises RuntimeError where kvlab
    loaded no BLAS.
    """
    sgemm = _sgemm()
    if sgemm is None:
        raise RuntimeError("no BLAS was loaded: see kvlab.backends.x86.blas_library")
    sgemm(
        ROW_MAJOR, PLAIN, TRANSPOSED if transpose else PLAIN, *out.shape, a.shape[1],
        1.0, a.ctypes.data, a.strides[0] // 4, b.ctypes.data, b.strides[0] // 4,
        1.0 if add else 0.0, out.ctypes.data, out.strides[0] // 4,
    )  # fmt: skip


class SingleThreadedBlas:
    """A context in which each product uses the core of its caller, so that several threads can compute at once.

    The number of BLAS threads is one for the whole process: the last thread to leave resets it, or sets the number that
    :meth:`set_threads` was given.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._before = 0

    def set_threads(self, count: int) -> None:
        """Set the number of BLAS threads: now, or once no thread is in the context."""
        with self._lock:
            if self._inside:
                self._before = count
            else:
                use_threads(count)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = threads_in_use()
                use_threads(1)
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                use_threads(self._before)


SINGLE_THREADED = SingleThreadedBlas()
"""That of this process."""


@functools.cache
def _sgemm() -> Any:
    # By its name, to which MLX is bound as well: the library's file may have been deleted.
    sgemm = getattr(ctypes.CDLL(None), "cblas_sgemm", None) if prepare().threads else None
    if sgemm is not None:
        size, number, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
        sgemm.argtypes = [*[size] * 6, number, *[address, size] * 2, number, address, size]
        sgemm.restype = None
    return sgemm
