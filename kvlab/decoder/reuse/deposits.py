"""``Deposits``: KV on its way from live caches into a store, copied aside from decoding where the device allows it."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

import mlx.core as mx

from kvlab.backends import mlx_threads

STEPS_UNTIL_COMPUTED = 2
"""Steps after which arrays that were set off behind a step have been computed: the decoder is one step ahead."""

Work = Callable[[], None]
log = logging.getLogger("kvlab.decoder")


class Deposits:
    """Runs work on computed arrays in order: at once, or ``aside`` on a thread that touches NumPy memory only.

    All methods belong to the decoder's thread.
    """

    def __init__(self, *, aside: bool) -> None:
        self._aside = aside
        self._waiting: deque[tuple[int, Callable[[], Work]]] = deque()
        self._steps = 0
        self._work: queue.Queue[Work | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def add(self, arrays: Sequence[mx.array], prepare: Callable[[], Work]) -> None:
        """Have ``prepare`` called on this thread once ``arrays`` are computed; what it returns runs aside."""
        if not self._aside:
            prepare()()
            return
        mx.async_eval(list(arrays))
        self._waiting.append((self._steps, prepare))

    def then(self, callback: Work) -> None:
        """Call ``callback`` once all that was added before is through."""
        if not self._aside:
            callback()
        else:
            self._waiting.append((self._steps, lambda: callback))

    def step(self) -> None:
        """Hand on what has been computed by now; called after each decode step."""
        self._steps += 1
        while self._waiting and self._waiting[0][0] + STEPS_UNTIL_COMPUTED <= self._steps:
            self._hand_on()

    def settle(self) -> None:
        """Wait until all that was added is through."""
        while self._waiting:
            self._hand_on()
        self._work.join()

    def close(self) -> None:
        """Settle, and end the thread. Idempotent."""
        self.settle()
        if self._thread is not None:
            self._work.put(None)
            mlx_threads.join(self._thread)
            self._thread = None

    def _hand_on(self) -> None:
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
            except Exception:  # KV that is not stored is computed again
                log.exception("kvlab: KV could not be stored")
            finally:
                del work  # it holds arrays
                self._work.task_done()
