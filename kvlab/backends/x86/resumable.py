"""Long computations that step aside for others: on the same thread, because MLX must stay on one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import mlx.core as mx
from greenlet import GreenletExit, greenlet

EASED = 0.95
"""What an expected wait becomes from one time to the next: others may have computed for it meanwhile."""


class Resumable(greenlet):
    """Runs a function up to a point in time, and from there on when it is asked again.

    The function gets on by itself: only where it calls one of this module's functions can it be left.

    Args:
        function: what to run.
        wait_s: how long :func:`evaluate` is expected to wait; as an attribute, in the light of how long it did.
    """

    def __init__(self, function: Callable[[], None], wait_s: float = 0.0) -> None:
        super().__init__(function)
        self.until = math.inf
        self.wait_s = wait_s

    def resume(self, until: float) -> None:
        """Run to the end, or to the first chance from ``until`` on (``time.perf_counter``). Raises what it raises."""
        self.until = until
        self.switch()

    def leave(self) -> None:
        """Called within: go on in whoever began it."""
        if self.parent is not None:
            self.parent.switch()

    def stop(self) -> None:
        """Leave the function for good; its ``finally`` clauses run, to their end."""
        self.until = math.inf
        self.throw(GreenletExit)


def maybe_yield(*, always: bool = False) -> None:
    """Within a :class:`Resumable` whose time is up, or ``always``: let others go on. Elsewhere nothing."""
    current = greenlet.getcurrent()
    if isinstance(current, Resumable) and (always or time.perf_counter() >= current.until):
        current.leave()


def evaluate(*arrays: Any) -> None:
    """As ``mx.eval``, which cannot be left: a :class:`Resumable` that has no time to wait steps aside before."""
    current = greenlet.getcurrent()
    if not isinstance(current, Resumable):
        mx.eval(*arrays)
        return
    expected, current.wait_s = current.wait_s, current.wait_s * EASED
    started = time.perf_counter()
    if started + expected >= current.until:
        maybe_yield(always=True)
        mx.eval(*arrays)
    else:
        mx.eval(*arrays)
        current.wait_s = max(current.wait_s, time.perf_counter() - started)


def wait_for(future: Future[None]) -> None:
    """Wait until ``future`` is done, and raise what it raised; a :class:`Resumable` steps aside in time."""
    current = greenlet.getcurrent()
    while isinstance(current, Resumable) and not future.done():
        left = current.until - time.perf_counter()
        wait([future], timeout=None if left == math.inf else max(0.0, left))
        maybe_yield()
    future.result()
