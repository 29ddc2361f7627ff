"""Blocks that are read straight into the memory where they are used."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvlab.store import Store
from kvlab.store import keys as k
from kvlab.store.blocks import Child
from kvlab.store.read_buffers import ArraySpec
from kvlab.store.ssd import blockfile
from tests.store_kit import BLOCK, NS, opened, payloads, put, rows

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 1000, 6 * BLOCK + 3)]


class Live:
    """A sink with memory for ``TOKENS``; notes what was handed over instead of being read into it."""

    def __init__(self, like: Mapping[str, np.ndarray]) -> None:
        self.arrays = {
            name: np.zeros((array.shape[0], len(TOKENS) + BLOCK, *array.shape[2:]), array.dtype)
            for name, array in like.items()
        }
        self.taken: list[int] = []

    def take(self, payload: Mapping[str, np.ndarray], at: int) -> None:
        self.taken.append(at)
        for name, array in payload.items():
            self.arrays[name][:, at : at + array.shape[1]] = array

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview]:
        end = at + arrays[0].shape[1]
        return [head[at:end].reshape(-1).view(np.uint8).data for one in arrays for head in self.arrays[one.name]]


def read_directly(store: Store) -> tuple[Live, int, str]:
    """Where a restore of ``TOKENS`` went, the tokens it made up, and why they are not all."""
    live = Live(payloads(TOKENS)[0])
    match = store.read_into(store.match(NS, TOKENS), live)
    for name, wanted in rows(TOKENS, 0, len(TOKENS)).items():
        np.testing.assert_array_equal(live.arrays[name][:, : match.tokens], wanted[:, : match.tokens])
    return live, match.tokens, match.miss


def files(folder: Path) -> list[Path]:
    """The files of the full blocks of ``TOKENS``, from the first on."""
    keys = k.chain_all(NS.root(), np.array(TOKENS, "<i4"), BLOCK)
    return [next(folder.rglob(key.hex())) for key in keys]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path) as store:
        put(store, TOKENS)
    return tmp_path


def test_whole_blocks_are_read_in_place_with_one_call_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("pread", "preadv"):
        real = getattr(os, name)
        monkeypatch.setattr(blockfile.os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    with opened(folder) as store:
        live, tokens, miss = read_directly(store)
    assert (tokens, miss, live.taken) == (len(TOKENS), "", [])
    assert calls.count("pread") <= 2  # the first block, and the shorter tail


def test_block_of_another_layout_is_read_in_place_too(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(NS, TOKENS[: 3 * BLOCK], 0, payloads(TOKENS[: 3 * BLOCK]), seconds=0.25)
        longer = 1e-9 + np.pi * 1e-200  # with a header that is
        store.put(NS, TOKENS, 3 * BLOCK, payloads(TOKENS, 3 * BLOCK), seconds=longer)
    with opened(tmp_path) as store:
        live, tokens, miss = read_directly(store)
    assert (tokens, miss, live.taken) == (len(TOKENS), "", [])


@pytest.mark.parametrize("harm", ["flip", "header", "grow", "shrink", "swap"])
@pytest.mark.parametrize("which", [0, 3])
def test_bad_block_is_detected_wherever_it_is_read(folder: Path, harm: str, which: int) -> None:
    path = files(folder)[which]
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-3] ^= 4
    elif harm == "header":
        data[100] ^= 4
    elif harm == "grow":
        data += b"\0"
    elif harm == "shrink":
        del data[-1]
    else:
        data = bytearray(files(folder)[which + 1].read_bytes())
    path.write_bytes(data)
    with opened(folder) as store:
        assert read_directly(store)[1:] == (which * BLOCK, "corrupt")
        assert store.stats()["corrupt"] == 1


def test_block_that_the_index_names_wrongly_is_detected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as store:
        other = k.chain_all(NS.root(), np.array(TOKENS, "<i4"), BLOCK)[4]
        asked = [*TOKENS[: 2 * BLOCK], *[7] * BLOCK]
        monkeypatch.setattr(
            store._tiers[0], "nearest", lambda parent, tokens: Child(other, np.array(asked[-BLOCK:], "<i4").tobytes())
        )
        live = Live(payloads(TOKENS)[0])
        match = store.read_into(store.match(NS, asked), live)
        assert (match.tokens, match.miss) == (2 * BLOCK, "corrupt")
