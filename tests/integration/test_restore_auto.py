"""``tiered:restore=auto``: a slow drive is read as far as that is quicker than computing, and answers stay the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kvlab.decoder import Decoder
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.store.ssd import blockfile

PROMPT = [20 + n % 90 for n in range(0, 12_000, 7)][:1000]
SLOW_S = 1.0


def policy(folder: Path, restore: str) -> str:
    return f"tiered:ram=64MB,ssd=1GB,dir={folder},restore={restore}"


def fill(model: LoadedModel, folder: Path) -> tuple[int, ...]:
    """Store a prompt in a folder; return the answer."""
    with Decoder(model, policy(folder, "always")) as decoder:
        return decoder.generate(PROMPT, max_tokens=4).tokens


def test_a_slow_drive_is_left_alone_after_one_block(
    bundled: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(bundled, tmp_path)
    with Decoder(bundled, policy(tmp_path, "auto"), retain=0) as decoder:
        for n in (300, 500, 700):
            decoder.generate([110, *PROMPT[:n]], max_tokens=1)
        _slow(monkeypatch, SLOW_S)
        first, second = (decoder.generate(PROMPT, max_tokens=4) for _ in range(2))
    assert first.tokens == second.tokens == wanted
    assert first.miss == "computed_sooner" and first.cached_tokens <= 64


def _slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = blockfile.read_to

    def read_to(path: str, key: bytes, buffer: Any) -> Any:
        made = real(path, key, buffer)  # asks the buffer for memory first: then the read is on its way
        time.sleep(seconds)
        return made

    monkeypatch.setattr(blockfile, "read_to", read_to)


def test_a_drive_that_is_quicker_than_computing_is_read_to_the_end(bundled: LoadedModel, tmp_path: Path) -> None:
    wanted = fill(bundled, tmp_path)
    with Decoder(bundled, policy(tmp_path, "auto"), retain=0) as decoder:
        meter = decoder._scheduler.reuse._meter  # type: ignore[union-attr]
        for n in (100, 200, 400, 800):
            meter.computed(0, n, float(n))  # a second a token: any drive is quicker
        done = decoder.generate(PROMPT, max_tokens=4)
    assert done.tokens == wanted and done.cached_tokens == len(PROMPT) - 1


def test_a_slow_drive_is_left_alone_by_the_first_request_of_a_process(
    bundled: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(bundled, tmp_path)
    _slow(monkeypatch, SLOW_S)
    with Decoder(bundled, policy(tmp_path, "auto"), retain=0) as decoder:
        first = decoder.generate(PROMPT, max_tokens=4)
    assert first.tokens == wanted
    assert (first.miss, first.cached_tokens) == ("computed_sooner", 0)


def test_blocks_that_are_read_for_the_second_time_are_left_alone_too(
    bundled: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bundled, tmp_path)
    with Decoder(bundled, policy(tmp_path, "always"), retain=0) as decoder:
        store = decoder.store
        assert store is not None
        decoder.generate(PROMPT, max_tokens=1)
        _slow(monkeypatch, SLOW_S)
        with Decoder(bundled, policy(tmp_path, "auto"), store=store, retain=0) as other:
            assert other.generate(PROMPT, max_tokens=1).cached_tokens == 0


def test_spec_says_restore_and_refuses_others() -> None:
    assert str(Policy.parse("tiered:restore=auto")) == "tiered:restore=auto"
    assert "restore" not in str(Policy.parse("tiered:restore=always"))
    with pytest.raises(PolicyError, match="restore=never is unknown; write one of always, auto"):
        Policy.parse("tiered:restore=never")


def shared(folder: Path, machine: str) -> str:
    return f"{policy(folder / machine, 'auto')},remote=file://{folder}/remote,remote_wait=30000"


@pytest.mark.parametrize(("block_s", "tier"), [(9.0, ""), (1e-6, "remote")])
def test_a_remote_is_read_where_that_is_quicker_than_computing(
    bundled: LoadedModel, tmp_path: Path, block_s: float, tier: str
) -> None:
    pytest.importorskip("obstore", reason="the extra `remote` is not installed")
    with Decoder(bundled, shared(tmp_path, "first")) as decoder:
        wanted = decoder.generate(PROMPT, max_tokens=4).tokens
        assert decoder.store is not None and decoder.store.flush()
    with Decoder(bundled, shared(tmp_path, "second"), retain=0) as decoder:
        reuse = decoder._scheduler.reuse
        for n in (100, 200, 400):
            reuse._meter.computed(0, n, 0.001 * n)  # type: ignore[attr-defined]
            reuse._remote.read(n, n * 1000, block_s * n)  # type: ignore[attr-defined]
        done = decoder.generate(PROMPT, max_tokens=4)
        assert decoder.store is not None
        assert decoder.store.stats()["misses"] == ({} if tier else {"computed_sooner": 1})
    assert done.tokens == wanted
    assert (set(done.cached_by_tier), done.miss) == (({tier}, "") if tier else (set(), "computed_sooner"))
