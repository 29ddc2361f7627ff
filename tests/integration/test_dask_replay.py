"""Replays on a real Dask scheduler, with its worker in this process: the rows of a replay without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.cli.main import main
from kvlab.replay import TraceError, block_trace, replay, replay_tiers
from kvlab.replay.capacity import read_capacity
from kvlab.replay.distributed_tasks import MAX_SENT, run_on
from kvlab.replay.tasks import ReplayTask
from kvlab.store.replacement.lru import Lru

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")

DRAW = np.random.default_rng(3)
TRACE = block_trace("made", 16, [DRAW.integers(0, 4, DRAW.integers(1, 7)).tolist() for _ in range(300)])


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_rows_of_one_tier_are_those_without_a_cluster(client: Any) -> None:
    options: dict[str, Any] = {"replace": "lru,sieve,superseded,belady", "capacity": "5%,20%", "progress": False}
    assert replay(TRACE, **options, client=client).rows == replay(TRACE, **options, workers=1).rows


def test_rows_of_two_tiers_are_those_without_a_cluster(client: Any) -> None:
    options: dict[str, Any] = {"ram": "5%", "ssd": "20%", "replace": "lru,lfu", "progress": False}
    assert replay_tiers(TRACE, **options, client=client).rows == replay_tiers(TRACE, **options, workers=1).rows


def test_a_policy_of_ones_own_is_replayed_in_this_process(client: Any) -> None:
    class Mine(Lru):
        name = "lru_of_mine"

    found = replay(TRACE, "lru,lru_of_mine,sieve", "5%", client=client, progress=False)
    lru, mine, _ = found.counts
    assert mine.hit_blocks.tolist() == lru.hit_blocks.tolist()


def test_an_error_of_a_replay_is_told(client: Any) -> None:
    with pytest.raises(TraceError, match="sample more, or replay it whole"):
        replay(TRACE, "sieve", "5%", sample=0.01, client=client, progress=False)


def test_the_command_prints_the_document_that_it_prints_without_a_cluster(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"block_tokens": 16}, *({"hash_ids": [1, 2, 3 + n % 4], "t": n} for n in range(20))]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["replay", str(path), "--replace", "lru,lfu", "--capacity", "4,5", "--json"]
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*command, "--scheduler", client.scheduler_info()["address"]]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == alone["rows"]


# -- what dies --------------------------------------------------------------------------------------------------------


class LosingClient:
    """Passes tasks on to a cluster; of the first ``losses`` traces that it sends, each is lost with its worker."""

    def __init__(self, client: Any, losses: int) -> None:
        self._client, self.losses, self.sent = client, losses, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def scatter(self, trace: Any, **options: Any) -> Any:
        self.sent += 1
        return self._client.scatter(trace, **options)

    def submit(self, task: Any, *given: Any, **options: Any) -> Any:
        future = self._client.submit(task, *given, **options)
        if self.sent <= self.losses:
            future.cancel()
        return future


def tasks() -> list[ReplayTask]:
    return [ReplayTask(name, read_capacity("5%", TRACE)) for name in ("sieve", "lfu")]


def test_a_trace_that_was_lost_is_sent_again(client: Any) -> None:
    losing = LosingClient(client, losses=2)
    found = run_on(losing, TRACE, tasks(), lambda _: None)  # type: ignore[arg-type]
    assert losing.sent == 3
    assert [one.hits for one in found] == [task.run(TRACE, lambda _: None).hits for task in tasks()]


def test_a_trace_that_is_always_lost_ends_the_replay_with_a_reason(client: Any) -> None:
    losing = LosingClient(client, losses=1000)
    with pytest.raises(TraceError, match="2 replays of 2 did not end.*too little memory"):
        run_on(losing, TRACE, tasks(), lambda _: None)  # type: ignore[arg-type]
    assert losing.sent == MAX_SENT
