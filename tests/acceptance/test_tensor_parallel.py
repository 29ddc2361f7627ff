"""A model that is split over two ranks, over loopback: the tokens of one rank, whatever the policy keeps."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import FLOAT32, Weights, random_model_folder
from tests.processes import environment

TIMEOUT_S = 120
RAGGED = [[0, 300], [0, 410], [3, 40], [3, 150], [0, 410]]
"""Start and length of prompts that come one after the other: some share a prefix, and the last was there before."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait(running: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all processes have ended, or one has failed."""
    deadline = time.monotonic() + TIMEOUT_S
    while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
        assert time.monotonic() < deadline, "the ranks wait for each other"
        time.sleep(0.05)


def run(
    folder: Path,
    model: str,
    plans: list[dict[str, Any]],
    *,
    ranks: int,
    backend: str = "mlx",
    dtype: str = "float32",
) -> list[list[Any]]:
    """Return what each rank found, decoder by decoder."""
    folder.mkdir(exist_ok=True)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
    running = []
    for rank in range(ranks):
        more = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if ranks > 1 else {}
        command = [sys.executable, "-m", "tests.rank", model, dtype, json.dumps(plans), str(folder / "found")]
        env = environment(KVLAB_BACKEND=backend, KVLAB_HOME=str(folder / "home"), **more)
        with (folder / f"stderr-{rank}").open("w") as stderr:
            running.append(subprocess.Popen(command, env=env, stderr=stderr))
    try:
        wait(running)
    finally:
        for process in running:  # MLX waits for ever for a rank that has ended, until its launcher ends it
            process.kill()
            process.wait()
    errors = [(folder / f"stderr-{rank}").read_text() for rank in range(ranks)]
    assert [process.returncode for process in running] == [0] * ranks, errors
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(ranks)]


POLICIES = ["full", "paged|quantized:bits=4", "tiered:dir=FOLDER", "tiered:dir=FOLDER"]


def qwen3(folder: Path, weights: Weights = FLOAT32) -> str:
    return str(random_model_folder("qwen3", folder, weights=weights, num_attention_heads=4, num_key_value_heads=2))


@pytest.mark.parametrize(("kind", "backend"), [("llama", "mlx"), ("llama", "x86"), ("qwen3", "mlx"), ("4bit", "mlx")])
def test_two_ranks_give_the_tokens_of_one(kind: str, backend: str, tmp_path: Path) -> None:
    weights = Weights(bits=4, group=32) if kind == "4bit" else FLOAT32
    model = "bundled" if kind == "llama" else qwen3(tmp_path / "model", weights)

    def plans(name: str) -> list[dict[str, Any]]:
        policies = [policy.replace("FOLDER", str(tmp_path / name)) for policy in POLICIES]
        return [{"policy": policy, "requests": RAGGED, "step": 128} for policy in policies]

    [alone] = run(tmp_path / "alone", model, plans("one"), ranks=1, backend=backend)
    both = run(tmp_path / "both", model, plans("two"), ranks=2, backend=backend)
    assert both[0] == both[1]
    tokens = [[done[0] for done in decoder] for decoder in both[0]]
    assert tokens == [[done[0] for done in decoder] for decoder in alone]
    assert [done[1] for done in both[0][-1]] == [299, 409, 39, 149, 409]  # found after the restart, in one folder


def test_what_one_rank_has_lost_is_computed_by_all(tmp_path: Path) -> None:
    plan = {"policy": f"tiered:dir={tmp_path}/RANK", "requests": [[0, 300]]}
    both = run(tmp_path / "cold", "bundled", [plan], ranks=2)
    first = [one[0][0][0] for one in both]
    shutil.rmtree(tmp_path / "1")
    again = run(tmp_path / "again", "bundled", [plan, plan], ranks=2)
    assert [one[0][0] for one in again] == [[first[0], 0, "other_rank"], [first[1], 0, "never_seen"]]
    assert [one[1][0][:2] for one in again] == [[first[0], 299]] * 2


def test_ranks_that_do_different_things_are_told(tmp_path: Path) -> None:
    plans = [{"policy": "full", "requests": [[0, 40]], "other": 10}, {"policy": "full", "requests": [[0, 40]]}]
    both = run(tmp_path, "bundled", plans[:1], ranks=2)
    assert all("out of step" in one[0][0] for one in both)


def test_ranks_draw_the_same_numbers(tmp_path: Path) -> None:
    requests = {"policy": "full", "requests": RAGGED[:2]}
    both = run(tmp_path, "bundled", [requests | {"sampled": True}, requests], ranks=2)
    assert both[0] == both[1] and both[0][0] != both[0][1]  # greedy
