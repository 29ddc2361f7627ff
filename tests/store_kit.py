"""Small blocks and stores for the tests of kvlab.store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.store import Match, Namespace, Payload, Store, StoreConfig
from kvlab.store.ssd.tier import SsdConfig

BLOCK = 8
NS = Namespace("model", "", "float32", BLOCK)
MB = 1 << 20


def rows(tokens: Sequence[int], start: int, end: int, ns: Namespace = NS) -> Payload:
    """KV of tokens[start:end] that depends, as real KV does, on all tokens up to each and on the namespace."""
    salt = int.from_bytes(ns.root()[:4], "little")
    sums = np.cumsum(np.asarray(tokens[:end], dtype=np.float64) * np.arange(1, end + 1)) + salt
    keys = np.stack([sums * (head + 1) for head in range(2)])[:, start:end, None] * np.ones(4)
    return {"0.k": keys.astype(np.float32), "0.v": (keys % 997).astype(np.uint16)}


def payloads(tokens: Sequence[int], start: int = 0, ns: Namespace = NS) -> list[Payload]:
    return [rows(tokens, at, min(at + ns.block, len(tokens)), ns) for at in range(start, len(tokens), ns.block)]


def put(store: Store, tokens: Sequence[int], start: int = 0, ns: Namespace = NS) -> Any:
    return store.put(ns, tokens, start, payloads(tokens, start, ns))


def fetch(store: Store, tokens: Sequence[int], ns: Namespace = NS) -> Match:
    """Match and read, check every byte against what the tokens' KV must be, and return the match that was read."""
    got, match = store.read(store.match(ns, tokens))
    assert match.tokens == sum(piece.used for piece in match.pieces) == sum(match.by_tier.values())
    assert len(got) == len(match.pieces)
    for piece, payload in zip(match.pieces, got, strict=True):
        same(payload, rows(tokens, piece.start, piece.start + piece.used, ns))
    return match


def same(got: Payload, expected: Payload) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array), name


def opened(folder: Path | None, *, ssd: int = 16 * MB, write_cap: int | None = None, **settings: Any) -> Store:
    """A store over RAM and, with ``folder``, an SSD tier there."""
    given: dict[str, Any] = {"block": BLOCK, "ram": 4 * MB, "replace": "lru"} | settings
    on_event = given.pop("on_event", None)
    below = () if folder is None else (SsdConfig(folder, ssd, given["replace"], write_cap),)
    return Store(StoreConfig(**({"below": below} | given)), on_event=on_event)


def sound(store: Store) -> None:
    assert store.check_integrity().problems == ()
