"""End threads that compute with MLX safely.

MLX keeps compiled functions and more in thread-local storage, whose destructors take Python's lock. They run after
Python reports the thread's end. If the interpreter ends before they have run, they abort the process ("terminate called
without an active exception"). So :func:`join` waits until the operating system has ended the thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

MAX_DESTRUCTOR_WAIT_S = 5.0
"""Longest wait for thread-local destructors, which take microseconds."""
POLL_S = 0.001
"""Seconds between two looks at the list of threads."""
MACOS_WAIT_S = 0.02
"""Seconds to wait where the system does not list single threads."""


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread that has computed with MLX, its thread-local destructors included."""
    native = thread.native_id
    thread.join()
    if sys.version_info >= (3, 13):  # there, join is the operating system's
        return
    tasks = Path("/proc/self/task")
    if not tasks.is_dir() or native is None:
        time.sleep(MACOS_WAIT_S)  # meanwhile the destructors can take Python's lock
        return
    deadline = time.monotonic() + MAX_DESTRUCTOR_WAIT_S
    while (tasks / str(native)).exists() and time.monotonic() < deadline:
        time.sleep(POLL_S)


async def apart(function: Callable[..., T], *arguments: object) -> T:
    """Call ``function``, which computes with MLX, on a thread of its own, and join that thread; return its result."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            done.set_exception(error)

    thread = threading.Thread(target=run, name="kvlab-apart", daemon=True)
    thread.start()
    try:
        return await asyncio.wrap_future(done)
    finally:
        await asyncio.to_thread(join, thread)
