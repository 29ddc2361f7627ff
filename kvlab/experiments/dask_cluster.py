"""The Dask cluster of a sweep: workers on this machine (``local:N``), or a scheduler that runs already (``tcp://…``).

Every worker is one process with one thread: MLX is used on one thread, and times are those of one cell at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.paths import PACKAGE

if TYPE_CHECKING:
    from distributed import Client

LOCAL, REMOTE_SCHEMES = "local", ("tcp", "tls", "ws", "wss", "ucx")
CONNECT_TIMEOUT_S = 20.0
"""Seconds to wait for a scheduler, and for its first worker."""
START_TIMEOUT_S = 120.0
"""Seconds to wait for the first worker of a cluster of one's own."""
LOST_WORKER_TIMEOUT = "10 minutes"
"""Time that a worker of one's own may take to come back after its death."""
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""Any of these says how many threads BLAS takes; kvlab chooses where none does."""
FORMS = "write local:N for N workers on this machine, or the address of a Dask scheduler such as tcp://host:8786"


@dataclass(frozen=True)
class SchedulerChoice:
    """Says where the cells of a sweep run: ``workers`` on this machine, or under the scheduler at ``address``."""

    workers: int = 0
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> SchedulerChoice:
        """Read ``local:N`` or an address. Raises RunError, which names both forms."""
        kind, colon, rest = text.strip().partition(":")
        if kind == LOCAL and colon:
            if not rest.isdecimal() or int(rest) < 1:
                raise RunError(f"no number of workers in {text!r}; {FORMS}")
            return cls(workers=int(rest))
        parts = urlsplit(text.strip())
        if parts.scheme not in REMOTE_SCHEMES or not parts.netloc:
            raise RunError(f"no scheduler {text!r}; {FORMS}")
        return cls(address=text.strip())


@contextlib.contextmanager
def connected(choice: SchedulerChoice) -> Iterator[Client]:
    """Yield a client of the cluster, at least one worker of which is there; end a cluster of one's own afterwards.

    Raises RunError without Dask, without a scheduler or workers, and for workers with several threads.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise RunError("sweeps on several processes need Dask: pip install 'kvlab[dask]'") from error
    with contextlib.ExitStack() as stack:
        if choice.address:
            try:
                client = stack.enter_context(Client(choice.address, timeout=CONNECT_TIMEOUT_S))
            except (OSError, ValueError) as error:  # a time-out is an OSError
                raise RunError(
                    f"no Dask scheduler answers at {choice.address} ({error}); start one with: dask scheduler"
                ) from error
        else:
            # A cluster gives up a worker whose new process takes longer than that, which importing MLX may.
            stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": LOST_WORKER_TIMEOUT}))
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=choice.workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,  # a nanny that pauses or ends a worker for its memory would falsify times
                    silence_logs=logging.ERROR,  # the sweep itself says that a worker died
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    env=worker_environment(choice.workers),
                )
            )
            client = stack.enter_context(Client(cluster))
        _wait_for_worker(client, choice)
        check_threads(client.nthreads())
        yield client


def worker_environment(workers: int, cores: int | None = None) -> dict[str, str]:
    """Return the variables of each of ``workers`` processes on one machine: they share its ``cores``.

    What this process's environment says of BLAS's threads stays; Dask would set one thread each. kvlab is found from
    a source tree, too.
    """
    given = {name: os.environ[name] for name in THREAD_VARIABLES if os.environ.get(name)}
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = str(max(1, (cores or available) // workers))
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return {name: given.get(name, "") if given else share for name in THREAD_VARIABLES} | {"PYTHONPATH": path}


def check_threads(threads: dict[str, int]) -> None:
    """Raise RunError for a worker with several threads, which would use MLX on all of them."""
    for address, count in threads.items():
        if count != 1:
            raise RunError(
                f"the worker at {address} has {counted(count, 'thread')}, and MLX is used on one: start workers with "
                "dask worker ADDRESS --nthreads 1"
            )


def _wait_for_worker(client: Client, choice: SchedulerChoice) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S if choice.address else START_TIMEOUT_S)
    except TimeoutError as error:
        where = choice.address or "this machine"
        raise RunError(f"no worker at {where}; start one with: dask worker {where} --nthreads 1") from error
