"""A decoder whose remote has an accident: the tokens of no cache, a bounded wait, counters tell, and it comes back.

Times of such requests beside those of computing them are in ``experiments/two_macs/faults.py``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvlab.decoder import Completion, Decoder
from kvlab.models import LoadedModel
from kvlab.store.remote.sealing import BLOCKS
from tests.remote_kit import PATIENT_S, Proxy, RedisServer, needs_redis, redis_server, until

pytest.importorskip("redis", reason="the extra `remote` is not installed")
pytestmark = needs_redis

WAIT_MS = 500
BOUND_MS = 6 * WAIT_MS
"""A lookup's wait and a block's, with room for a busy machine; hanging sockets would take four times that."""
PROMPTS = [[20 + n, *(30 + (7 * n + 3 * at) % 200 for at in range(150))] for n in range(6)]
TOKENS = 6


class Place:
    """A server that holds all prompts, and a proxy before it."""

    def __init__(self, server: RedisServer, proxy: Proxy) -> None:
        self.server, self.proxy, self.direct = server, proxy, server.direct()

    def hang(self) -> None:
        self.server.signal(signal.SIGSTOP)

    def slow(self) -> None:
        self.proxy.delay_s = WAIT_MS / 1e3

    def fill_up(self) -> None:
        self.direct.config_set("maxmemory", 1)

    def flip(self) -> None:
        for at, name in enumerate(sorted(self.direct.keys(f"{BLOCKS}*"))):
            data = bytearray(self.direct.get(name))
            data[(at * 7919) % len(data)] ^= 1 << at % 8
            self.direct.set(name, bytes(data))

    def replace(self) -> None:
        for name in self.direct.keys(f"{BLOCKS}*"):
            self.direct.set(name, os.urandom(1000))

    def refuse(self) -> None:
        self.direct.config_set("requirepass", "another")
        self.server.direct(password="another").client_kill_filter(_type="normal", skipme=True)


@pytest.fixture(scope="module")
def answers(bundled: LoadedModel) -> list[tuple[int, ...]]:
    """Return what is answered without any cache."""
    with Decoder(bundled, "full") as decoder:
        return [decoder.generate(prompt, max_tokens=TOKENS).tokens for prompt in PROMPTS]


@pytest.fixture
def place(bundled: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("KVLAB_REMOTE_KEY", "KVLAB_REMOTE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        with machine(bundled, tmp_path / "first", server.url, PATIENT_S) as decoder:
            for prompt in PROMPTS[1:]:
                decoder.generate(prompt, max_tokens=1)
            assert decoder.store is not None and decoder.store.flush()
        proxy = Proxy(server.port)
        yield Place(server, proxy)
        proxy.close()


def machine(model: LoadedModel, folder: Path, url: str, wait_s: float = WAIT_MS / 1e3) -> Decoder:
    return Decoder(model, f"tiered:ram=64MB,ssd=1GB,dir={folder},remote={url},remote_wait={round(1e3 * wait_s)}")


@pytest.mark.parametrize(
    ("accident", "counter", "may_read"),
    [
        (lambda place: place.server.kill(), "remote_trips", False),
        (Place.hang, "remote_late", False),
        (Place.slow, "remote_late", False),
        (Place.fill_up, "remote_failures", True),
        (Place.flip, "corrupt", False),
        (Place.replace, "corrupt", False),
        (Place.refuse, "remote_trips", False),
    ],
    ids=["killed", "hangs", "slow", "full", "flipped bits", "foreign data", "wrong password"],
)
def test_answers_are_those_of_no_cache_and_nothing_waits_for_long(
    accident: Callable[[Place], object],
    counter: str,
    may_read: bool,
    place: Place,
    bundled: LoadedModel,
    answers: list[tuple[int, ...]],
    tmp_path: Path,
) -> None:
    with machine(bundled, tmp_path / "second", f"redis://127.0.0.1:{place.proxy.port}/0") as decoder:
        accident(place)
        done = [decoder.generate(prompt, max_tokens=TOKENS) for prompt in PROMPTS]
        assert [one.tokens for one in done] == answers
        assert all(one.lookup_ms + one.restore_ms < BOUND_MS for one in done)
        assert [one.cached_by_tier.get("remote", 0) for one in done[1:]] == [len(PROMPTS[1]) - 1 if may_read else 0] * 5
        assert decoder.store is not None
        decoder.store.flush()
        stats = decoder.store.stats()
        assert (stats["misses"] if counter == "corrupt" else stats)[counter] >= 1


def test_a_remote_that_hangs_while_a_prompt_is_read_costs_one_wait_and_is_used_again(
    place: Place, bundled: LoadedModel, answers: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine(bundled, tmp_path / "second", f"redis://127.0.0.1:{place.proxy.port}/0") as decoder:
        assert decoder.store is not None
        client = decoder.store._tiers[-1]._client  # type: ignore[attr-defined]
        read = client.read

        def stopped(names: list[str]) -> dict[str, bytes]:
            monkeypatch.setattr(client, "read", read)
            place.hang()
            found: dict[str, bytes] = read(names)
            return found

        monkeypatch.setattr(client, "read", stopped)

        def served(number: int) -> Completion:
            done = decoder.generate(PROMPTS[number], max_tokens=TOKENS)
            assert done.tokens == answers[number] and done.lookup_ms + done.restore_ms < BOUND_MS
            return done

        first, second = served(1), served(2)
        assert (first.cached_tokens, first.miss, second.cached_tokens) == (0, "unreadable", 0)
        stats = decoder.store.stats()
        assert stats["remote_late"] == stats["remote_trips"] == 1 and stats["unreadable"] == 1
        place.server.signal(signal.SIGCONT)
        until(decoder.store, lambda stats: stats["trouble"] == "")
        assert served(3).cached_by_tier["remote"] == len(PROMPTS[3]) - 1
