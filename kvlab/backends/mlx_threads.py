"""Threads that compute with MLX, and their real end.

MLX keeps compiled functions and more in thread-local storage, whose destructors take Python's lock. They run after
Python has called the thread ended, and where the interpreter ends meanwhile they abort the process ("terminate called
without an active exception"). So whoever ends such a thread waits until the operating system has seen it off.
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

PATIENCE_S = 5.0
"""Longest wait for destructors, which take microseconds."""


def join(thread: threading.Thread) -> None:
    """Wait for the end of a thread that has computed with MLX, its thread-local destructors included."""
    native = thread.native_id
    thread.join()
    if sys.version_info >= (3, 13):  # there, join is the operating system's
        return
    tasks = Path("/proc/self/task")
    if not tasks.is_dir() or native is None:
        time.sleep(0.02)  # macOS says nothing of single threads: give it the lock for a while
        return
    patience = time.monotonic() + PATIENCE_S
    while (tasks / str(native)).exists() and time.monotonic() < patience:
        time.sleep(0.001)


async def apart(function: Callable[..., T], *arguments: object) -> T:
    """Call ``function``, which computes with MLX, on a thread of its own, and see that thread off."""
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
