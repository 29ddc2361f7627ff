"""``Deposits``: stores KV of live caches, on a thread beside decoding where the device allows it."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

import mlx.core as mx

from kvlab.backends import mlx_threads

STEPS_UNTIL_COMPUTED = 2
"""Steps after which arrays that were started after a step have been computed: the decoder is one step ahead."""

Work = Callable[[], None]
log = logging.getLogger("kvlab.decoder")


class Deposits:
    """Runs work on computed arrays in order: at once, or in the background on a thread that uses NumPy only.

    All methods belong to the decoder's thread.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._in_background = in_background
        self._waiting: deque[tuple[int, Callable[[], Work]]] = deque()
        self._steps = 0
        self._work: queue.Queue[Work | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def add(self, arrays: Sequence[mx.array], prepare: Callable[[], Work]) -> None:
        """Have ``prepare`` called on this thread once ``arrays`` are computed; run the work that it returns."""
        if not self._in_background:
            prepare()()
            return
        mx.async_eval(list(arrays))
        self._waiting.append((self._steps, prepare))

    def call_after(self, callback: Work) -> None:
        """Call ``callback`` once all work that was added before is done."""
        if not self._in_background:
            callback()
        else:
            self._waiting.append((self._steps, lambda: callback))

    def step(self) -> None:
        """Hand over work whose arrays have been computed; called after each decode step."""
        self._steps += 1
        while self._waiting and self._waiting[0][0] + STEPS_UNTIL_COMPUTED <= self._steps:
            self._hand_over()

    def settle(self) -> None:
        """Wait until all work that was added is done."""
        while self._waiting:
            self._hand_over()
        self._work.join()

    def close(self) -> None:
        """Finish all work, and end the thread. Idempotent."""
        self.settle()
        if self._thread is not None:
            self._work.put(None)
            mlx_threads.join(self._thread)
            self._thread = None

    def _hand_over(self) -> None:
        work = self._waiting.popleft()[1]()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvlab-deposits", daemon=True)
            self._thread.start()
        self._work.put(work)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                if work is None:
                    return
                work()
            except Exception:  # KV that is not stored is only computed again
                log.exception("kvlab: KV could not be stored")
            finally:
                del work  # it holds arrays
                self._work.task_done()
