"""A sweep in real processes: killed and resumed, it gives the rows of an unbroken one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kvlab
from kvlab.experiments.config import read_experiment
from tests.processes import environment

ROOT = Path(kvlab.__file__).parents[1]
FILE = """
workload = "retrieval"
tokens = 110
policies = ["full", "paged", "quantized:bits={bits}", "rotating:window=32"]
seeds = [0, 1, 2, 3]
repeats = 2
[grid]
bits = [8, 4]
"""
TIMED = ("ms", "tokens/s", "bytes/s")


def start(path: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvlab", "run", str(path), "--out", str(folder), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def finished(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


def killed_at(path: Path, folder: Path, cells: int) -> dict[str, int]:
    """The finished cells of a sweep that was killed when it had done so many."""
    process = start(path, folder)
    try:
        end = time.monotonic() + 120
        while len(finished(folder)) < cells:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return finished(folder)


def untimed(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return [row for row in json.loads(out)["rows"] if row["unit"] not in TIMED]


def test_a_sweep_killed_twice_gives_the_rows_of_an_unbroken_one(tmp_path: Path) -> None:
    path = tmp_path / "forty.toml"
    path.write_text(FILE)
    cells = read_experiment(path).cells()
    assert len(cells) == 40
    first = killed_at(path, tmp_path / "broken", 9)
    second = killed_at(path, tmp_path / "broken", 22)
    assert 9 <= len(first) < len(second) < 40
    assert first.items() <= second.items(), "a finished cell was done again"
    both = [start(path, tmp_path / "broken") for _ in range(2)]  # the rest by two processes at once
    resumed, beside = map(untimed, both)
    third = finished(tmp_path / "broken")
    assert second.items() <= third.items() and set(third) == {f"{cell.id}.json" for cell in cells}
    unbroken = untimed(start(path, tmp_path / "unbroken"))
    assert resumed == beside == unbroken and len(unbroken) >= 40 * 4
    assert {row["policy"] for row in unbroken} == {cell.policy for cell in cells}
    assert {path.suffix for path in (tmp_path / "broken" / ".work").iterdir()} == {".lock"}
