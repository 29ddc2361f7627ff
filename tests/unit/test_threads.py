"""A thread that computed with MLX is gone for the operating system too once it was joined."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.backends.mlx_threads import apart, join

# isort: split
import mlx.core as mx

TASKS = Path("/proc/self/task")


def compute() -> int:
    # A compiled function leaves thread-local storage that takes Python's lock when the thread ends.
    return int(mx.compile(lambda x: x + 1)(mx.array(1)).item())


@pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux lists the threads of a process")
def test_joined_threads_are_gone() -> None:
    for _ in range(100):
        thread = threading.Thread(target=compute)
        thread.start()
        join(thread)
        assert not (TASKS / str(thread.native_id)).exists()


def test_apart_gives_results_and_errors() -> None:
    assert asyncio.run(apart(compute)) == 2
    with pytest.raises(ZeroDivisionError):
        asyncio.run(apart(lambda: 1 / 0))
    assert not [thread for thread in threading.enumerate() if thread.name == "kvlab-apart"]


def test_python_joins_threads_itself_from_3_13_on() -> None:
    assert (sys.version_info >= (3, 13)) == hasattr(__import__("_thread"), "start_joinable_thread")
