"""What the dashboard counts: tokens by why they were computed, and sizes while nobody looks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kvlab.decoder import Completion
from kvlab.server.access import Client
from kvlab.server.computed_tokens import reason_for_computing
from kvlab.server.metrics import ServerMetrics
from kvlab.server.tier_history import MAX_POINTS, TierHistory


def completion(prompt: int, cached: int, miss: str, ttft_ms: float = 5.0) -> Completion:
    times = {"queue_ms": 0.0, "lookup_ms": 0.0, "restore_ms": 0.0, "prefill_ms": 0.0, "tpot_ms": 0.0, "itl_ms": ()}
    cache = {"cached_tokens": cached, "cached_by_tier": {"ram": cached} if cached else {}, "miss": miss}
    facts = {"request": 0, "tokens": (5,), "finish_reason": "stop", "kv_bytes_live": 0, "ttft_ms": ttft_ms}
    return Completion(prompt_tokens=prompt, **cache, **times, **facts)


@pytest.mark.parametrize(
    ("prompt", "cached", "miss", "reason"),
    [
        (1898, 1876, "never_seen", "new"),  # a turn of a conversation: a hit of 99 %
        (1898, 0, "never_seen", "never_seen"),
        (100, 1, "never_seen", "new"),
        (100, 60, "diverged_at=60", "diverged_at"),
        (100, 60, "evicted", "evicted"),
        (100, 0, "other_policy", "other_policy"),
        (100, 0, "no_checkpoint", "no_checkpoint"),
        (100, 99, "", "last_token"),
        (100, 0, "", "no_reuse"),
    ],
)
def test_every_request_has_a_reason_for_what_it_computed(prompt: int, cached: int, miss: str, reason: str) -> None:
    assert reason_for_computing(completion(prompt, cached, miss)) == reason


def test_tokens_are_counted_not_requests_and_none_is_left_out() -> None:
    metrics = ServerMetrics({})
    made = [
        completion(1000, 0, "never_seen"),
        completion(1010, 1000, "never_seen"),
        completion(1020, 1010, "never_seen"),
        completion(500, 400, "diverged_at=400"),
        completion(300, 0, "", ttft_ms=0.0),  # cancelled in the queue: nothing was computed
    ]
    for one in made:
        metrics.completed("", one, 1, "stop")
    state = metrics.state(Client("", sees_all=True))
    assert state["totals"]["computed_tokens_total"] == {"never_seen": 1000.0, "new": 20.0, "diverged_at": 100.0}


class Models(dict):
    """One model whose sizes are set."""

    def __init__(self) -> None:
        self.live, self.ram = 0, 0
        held = {"tiers_bytes": lambda: {"ram": self.ram}, "live_bytes": lambda: self.live}
        super().__init__(one=SimpleNamespace(decoder=SimpleNamespace(**held)))


def test_the_history_begins_with_the_server_and_ends_now() -> None:
    now, models = [1000.0], Models()
    history = TierHistory(models, clock=lambda: now[0])
    for models.live, models.ram in ((0, 0), (5, 0), (0, 7)):
        history.sample()
        now[0] += 5
    models.live, now[0] = 9, 1012.0
    columns = history.columns()
    assert columns["at"] == [1000, 1005, 1010, 1012]
    assert columns["live"] == [0, 5, 0, 9] and columns["ram"] == [0, 0, 7, 7]
    assert set(columns) == {"at", "live", "ram", "ssd"}  # no remote: no model has one
    for _ in range(MAX_POINTS + 5):
        history.sample()
    assert len(history.columns()["at"]) == MAX_POINTS + 1


def test_it_is_sampled_while_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    history = TierHistory(Models())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(history.follow(5.0))
    assert slept == [5.0] * 4 and len(history.columns()["at"]) == 5


def test_sizes_are_for_clients_that_see_all() -> None:
    metrics: Any = ServerMetrics({})
    assert metrics.state(Client("a", sees_all=False))["history"] == {}
    assert metrics.state(Client("a", sees_all=True))["history"]["at"]
