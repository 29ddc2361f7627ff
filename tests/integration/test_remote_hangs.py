"""A remote that stops answering while blocks are read: a request waits for less than computing them would take.

Class of faults: no answer from the first block on, from a later block on, and blocks that come one by one, each late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvlab.decoder import Decoder
from kvlab.decoder.reuse.read_patience import WAIT_SHARE, ReadPatience
from kvlab.decoder.reuse.restore_meter import RestoreMeter
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.store import Match, Store, StoreConfig
from kvlab.store.matches import Piece
from kvlab.store.remote import RemoteConfig
from kvlab.store.remote.sealing import BLOCKS
from tests.store_kit import MB

BLOCK, PROMPT = 16, [5 + (7 * n) % 200 for n in range(5 * 16 + 3)]
PATIENT_S = 30.0
"""What the remote itself may take to answer here; the bound must come from the speed of computing."""


class Computing(RestoreMeter):
    """Knows a speed: a token a millisecond."""

    def __init__(self, token_s: float = 0.001) -> None:
        super().__init__()
        for n in (100, 200, 400):
            self.computed(0, n, token_s * n)


def match(tiers: Sequence[str]) -> Match:
    pieces = [Piece(bytes([at]), at * BLOCK, BLOCK, BLOCK, tier) for at, tier in enumerate(tiers)]
    return Match(len(pieces) * BLOCK, tuple(pieces))


def test_the_first_block_is_worth_a_share_of_computing_all() -> None:
    patience = ReadPatience(Computing(), match(["ssd", *["remote"] * 10]), lambda: 7.0)
    assert patience.left_s(0) == float("inf"), "the SSD needs no bound"
    assert patience.left_s(BLOCK) == pytest.approx(WAIT_SHARE * 0.160)
    assert patience.left_s(2 * BLOCK) == pytest.approx(0.016 + WAIT_SHARE * 0.144)


def test_a_remote_that_drips_costs_no_more_than_one_that_hangs() -> None:
    now = [0.0]
    patience = ReadPatience(Computing(), match(["remote"] * 10), lambda: now[0])
    for start in range(0, 10 * BLOCK, BLOCK):
        left = patience.left_s(start)
        now[0] += left  # each block comes at the last moment
    assert now[0] <= 0.160 * (1 + WAIT_SHARE)


def test_nothing_is_bounded_while_no_speed_is_known() -> None:
    assert ReadPatience(RestoreMeter(), match(["remote"])).left_s(0) == float("inf")


@pytest.fixture
def hanging(tmp_path: Path, bundled: LoadedModel) -> Iterator[tuple[Store, Decoder, threading.Event]]:
    """A second machine whose remote has the prompt; the event lets its reads go on."""
    pytest.importorskip("obstore", reason="the extra `remote` is not installed")
    policy = Policy.parse(f"paged:block={BLOCK}|tiered")
    release = threading.Event()

    def opened() -> Store:
        remote = RemoteConfig(f"file://{tmp_path}/remote", wait_s=PATIENT_S)
        return Store(StoreConfig(BLOCK, 64 * MB, below=(remote,)))

    with opened() as store, Decoder(bundled, policy, store=store) as decoder:
        decoder.generate(PROMPT, max_tokens=4)
        assert store.flush()
    with opened() as store, Decoder(bundled, policy, store=store, retain=0) as decoder:
        yield store, decoder, release
        release.set()


def stop(store: Store, release: threading.Event) -> None:
    """Have every read of blocks hang until it is released."""
    tier = store._tiers[-1]
    tier._config = RemoteConfig(tier._config.url, wait_s=0.05)  # type: ignore[attr-defined]
    client = tier._client  # type: ignore[attr-defined]
    read, real_wait = client.read, tier._calls.result  # type: ignore[attr-defined]

    def stopped(names: Sequence[str]) -> dict[str, bytes]:
        if all(name.startswith(BLOCKS) for name in names):  # lookups in a folder read, too
            release.wait(PATIENT_S)
        return read(names)

    client.read = stopped
    # The tier's own limit is made one that no test would wait for.
    tier._calls.result = lambda future, _, most_s: real_wait(future, PATIENT_S, most_s)  # type: ignore[attr-defined]


def test_a_read_that_hangs_ends_by_the_speed_of_computing(hanging: tuple[Store, Decoder, threading.Event]) -> None:
    store, decoder, release = hanging
    reuse = decoder._scheduler.reuse
    for n in (100, 200, 400):
        reuse._speed.computed(0, n, 0.01 * n)  # type: ignore[attr-defined]
    stop(store, release)
    started = time.monotonic()
    done = decoder.generate(PROMPT, max_tokens=4)
    assert time.monotonic() - started < PATIENT_S / 2
    assert (done.cached_tokens, done.miss) == (0, "unreadable")
    assert store.stats()["remote_late"] == 1 and store.stats()["misses"]["unreadable"] == 1


def test_a_remote_given_up_for_one_prompt_is_used_again_once_it_answers(
    hanging: tuple[Store, Decoder, threading.Event],
) -> None:
    store, decoder, release = hanging
    reuse = decoder._scheduler.reuse
    reuse._speed.computed(0, 100, 1.0)  # type: ignore[attr-defined]
    stop(store, release)
    assert decoder.generate(PROMPT, max_tokens=1).cached_tokens == 0
    release.set()
    end = time.monotonic() + PATIENT_S
    while store.stats()["trouble"] and time.monotonic() < end:
        time.sleep(0.01)
    assert store.stats()["trouble"] == "", "a remote that answers a ping is no remote in trouble"
