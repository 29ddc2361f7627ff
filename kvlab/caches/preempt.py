"""Long computations that step aside for others: on the same thread, because MLX must stay on one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait

from greenlet import GreenletExit, greenlet


class Preemptible(greenlet):
    """Runs a function up to a point in time, and from there on when it is asked again.

    The function gets on by itself: only where it calls :func:`step_aside` can it be left.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__(function)
        self.until = math.inf

    def go_on(self, until: float) -> None:
        """Run to the end, or to the first chance at or after ``until`` (``time.perf_counter``). Raises what it raises."""
        self.until = until
        self.switch()

    def stop(self) -> None:
        """Leave the function for good; its ``finally`` clauses run."""
        self.throw(GreenletExit)


def step_aside(*, always: bool = False) -> None:
    """Within a :class:`Preemptible` whose time is up, or ``always``: let others go on. Elsewhere nothing."""
    current = greenlet.getcurrent()
    if isinstance(current, Preemptible) and (always or time.perf_counter() >= current.until):
        current.parent.switch()


def wait_for(future: Future[None]) -> None:
    """Until ``future`` is done, whose exception is raised; a :class:`Preemptible` steps aside when its time is up."""
    current = greenlet.getcurrent()
    while isinstance(current, Preemptible) and not future.done():
        wait([future], timeout=max(0.0, current.until - time.perf_counter()) if current.until < math.inf else None)
        step_aside()
    future.result()
