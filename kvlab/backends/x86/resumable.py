"""``Resumable``: a long computation that can be interrupted for other work on the same thread, where MLX must stay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import mlx.core as mx
from greenlet import GreenletExit, greenlet

WAIT_DECAY = 0.95
"""Factor of the expected wait from one wait to the next, because the last one may have been an exception."""


class Resumable(greenlet):
    """Runs a function up to a point in time, and resumes it in the next call.

    The function is interrupted only where it calls a function of this module.

    Args:
        function: the computation.
        wait_s: seconds that :func:`evaluate` is expected to wait.

    Attributes:
        wait_s: the same, after the waits so far.
        until: time of ``time.perf_counter`` from which the function is interrupted.
    """

    def __init__(self, function: Callable[[], None], wait_s: float = 0.0) -> None:
        super().__init__(function)
        self.until = math.inf
        self.wait_s = wait_s

    def resume(self, until: float) -> None:
        """Run to the end, or to the first chance after ``until``, a time of ``time.perf_counter``.

        Raises the function's errors.
        """
        self.until = until
        self.switch()

    def interrupt(self) -> None:
        """Continue in the caller of :meth:`resume`; called by the function itself."""
        if self.parent is not None:
            self.parent.switch()

    def stop(self) -> None:
        """End the function before it is done; its ``finally`` clauses run to their end."""
        self.until = math.inf
        self.throw(GreenletExit)


def maybe_yield(*, always: bool = False) -> None:
    """Interrupt a :class:`Resumable` whose time is over, or ``always``; do nothing in other code."""
    current = greenlet.getcurrent()
    if isinstance(current, Resumable) and (always or time.perf_counter() >= current.until):
        current.interrupt()


def evaluate(*arrays: Any) -> None:
    """Call ``mx.eval``, which cannot be interrupted: a :class:`Resumable` without time for it is interrupted before."""
    current = greenlet.getcurrent()
    if not isinstance(current, Resumable):
        mx.eval(*arrays)
        return
    expected, current.wait_s = current.wait_s, current.wait_s * WAIT_DECAY
    started = time.perf_counter()
    if started + expected >= current.until:
        maybe_yield(always=True)
        mx.eval(*arrays)
    else:
        mx.eval(*arrays)
        current.wait_s = max(current.wait_s, time.perf_counter() - started)


def wait_for(future: Future[None]) -> None:
    """Wait until ``future`` is done, and raise its error; a :class:`Resumable` is interrupted when its time is over."""
    current = greenlet.getcurrent()
    while isinstance(current, Resumable) and not future.done():
        left = current.until - time.perf_counter()
        wait([future], timeout=None if left == math.inf else max(0.0, left))
        maybe_yield()
    future.result()
