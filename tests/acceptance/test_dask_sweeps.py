"""Sweeps on worker processes, which are killed at random: the rows are those of an unbroken sweep in one process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kvlab.experiments.dask_cluster import SchedulerChoice, connected
from kvlab.experiments.dask_sweep import finish_on
from kvlab.experiments.result_store import RowStore
from tests import dask_cells as cheap_cells
from tests.processes import environment

pytest.importorskip("distributed", reason="the extra `dask` is not installed")

CELLS, KILLS = 200, 10
FILE = """
workload = "retrieval"
tokens = 110
policies = ["full", "paged", "rotating:window=32"]
seeds = [0, 1]
"""
TIMED = ("ms", "tokens/s", "bytes/s")


class Killer(threading.Thread):
    """Kills a worker process of a cluster, again and again, each time after some more cells are finished."""

    def __init__(self, client: Any, folder: Path, kills: int) -> None:
        super().__init__(daemon=True)
        self.client, self.folder, self.kills, self.killed = client, folder, kills, list[int]()
        self.chance = random.Random(1)

    def run(self) -> None:
        while len(self.killed) < self.kills:
            at = len(self.killed) * CELLS // (self.kills + 2)
            while len(list(self.folder.glob("*.json"))) < at or not (pids := self._workers()):
                time.sleep(0.02)
            time.sleep(self.chance.random() * 2 * cheap_cells.CELL_S)
            victim = self.chance.choice(pids)
            os.kill(victim, signal.SIGKILL)
            self.killed.append(victim)

    def _workers(self) -> list[int]:
        found = self.client.run(os.getpid, on_error="ignore").values()
        return [pid for pid in found if isinstance(pid, int) and pid not in self.killed]


def test_a_sweep_whose_workers_are_killed_at_random_gives_the_rows_of_an_unbroken_one(tmp_path: Path) -> None:
    store, wanted = RowStore(tmp_path), cheap_cells.cells(CELLS)
    with connected(SchedulerChoice.parse("local:2")) as client:
        killer = Killer(client, store.cells, KILLS)
        killer.start()
        finish_on(client, wanted, store, "killed", progress=False, task=cheap_cells.cheap)
        killer.join(timeout=60)
    assert len(set(killer.killed)) == KILLS
    results = store.results(wanted)
    assert results.rows == [row for cell in wanted for row in cheap_cells.result(cell).rows]
    assert len(list(store.cells.iterdir())) == CELLS
    assert {path.suffix for path in store.work.iterdir()} == {".lock"}, "a claim was left behind"


def test_two_workers_give_the_rows_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / "six.toml"
    path.write_text(FILE)
    alone, before = untimed(path, tmp_path / "alone")
    shared, said = untimed(path, tmp_path / "shared", "--scheduler", "local:2")
    assert shared == alone and len(alone) >= 6 * 4
    assert "dashboard: http://127.0.0.1:" in said and "dashboard" not in before
    assert "6 cells finished. Rows:" in said
    again, said = untimed(path, tmp_path / "shared", "--scheduler", "local:2")
    assert again == shared and "6 of them before this run" in said and "dashboard" not in said


def untimed(path: Path, folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "kvlab", "run", str(path), "--out", str(folder), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return [row for row in json.loads(done.stdout)["rows"] if row["unit"] not in TIMED], done.stderr
