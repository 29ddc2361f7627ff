"""Stop asking a remote that is in trouble, and learn when it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kvlab.store.remote.errors import RemoteTrouble

PROBE_S, MAX_PROBE_S = 0.25, 3.0
"""Seconds between two looks at a remote in trouble; they double while it keeps coming back and failing again."""
STEADY_S = 10.0
"""Seconds without trouble after which a remote is looked at often again."""

log = logging.getLogger("kvlab.store")


class Circuit:
    """Is open while a remote is in trouble: nothing is asked then, but for a ping on a thread of its own.

    It closes when the remote has answered within ``wait_s`` seconds. ``on_closed`` is called then, on that thread.
    """

    def __init__(self, name: str, ping: Callable[[], None], wait_s: float, on_closed: Callable[[], None]) -> None:
        self._name, self._ping, self._wait_s, self._on_closed = name, ping, wait_s, on_closed
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._probe: threading.Thread | None = None
        self._closed_at, self._pause_s = 0.0, PROBE_S
        self._warned = False
        self.is_open = False
        self.trouble = ""
        self.trips = 0

    def trip(self, trouble: str, *, look_at_once: bool = False) -> None:
        """Open, and begin to look whether the remote is back. Does nothing where it is open.

        ``look_at_once`` is for a remote that may be well: it is asked without a pause, and closed when it answers.
        """
        with self._lock:
            if self.is_open or self._ended.is_set():
                return
            steady = time.monotonic() - self._closed_at > STEADY_S
            if not look_at_once:
                self._pause_s = PROBE_S if steady else min(2 * self._pause_s, MAX_PROBE_S)
            self.is_open, self.trouble, self.trips = True, trouble, self.trips + 1
            warn, self._warned = not self._warned, True
            first = (0.0 if look_at_once else self._pause_s,)
            self._probe = threading.Thread(target=self._look, args=first, name="kvlab-remote-probe", daemon=True)
            self._probe.start()
        if warn:
            log.warning("kvlab store: %s: %s; going on without it until it is back", self._name, trouble)

    def end(self) -> None:
        """End the thread. Idempotent."""
        self._ended.set()
        probe = self._probe
        if probe is not None and probe is not threading.current_thread():
            probe.join(timeout=1.0)

    def _look(self, pause_s: float) -> None:
        while not self._ended.wait(pause_s):
            pause_s = self._pause_s
            try:
                self._ping()  # connects anew, which may take longer than an answer
                started = time.monotonic()
                self._ping()
            except RemoteTrouble as error:
                self.trouble = str(error)
                continue
            took = time.monotonic() - started
            if took <= self._wait_s:
                with self._lock:
                    self.is_open, self.trouble, self._closed_at = False, "", time.monotonic()
                self._on_closed()
                return
            self.trouble = f"it takes {took:.3f} s to answer, more than {self._wait_s:g} s"
