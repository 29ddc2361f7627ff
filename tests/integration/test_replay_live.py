"""Live and replay: the same requests through the decoder and through the replay find and lose the same blocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.advising.kv_bytes import token_bytes_of
from kvlab.decoder import Decoder
from kvlab.decoder.reuse.paged import policy_key
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder
from kvlab.replay import block_trace, replay_tiers
from kvlab.replay.loaders.kvlab_events import trace_of_events
from kvlab.replay.sized_block import TraceBlocks
from kvlab.replay.tiers import ReplayTiers
from kvlab.store import Namespace
from kvlab.store import keys as k
from kvlab.tiers import RAM, SSD

BLOCK = 16
REQUESTS = 26
DEADLINE_S = 60.0


def prompts(seed: int) -> list[list[int]]:
    """Contents of the blocks of each prompt: conversations with one head that go on, stop, and begin anew."""
    draw = np.random.default_rng(seed)
    open_ones: list[list[int]] = []
    made, fresh = [], 2
    for _ in range(REQUESTS):
        if not open_ones or draw.random() < 0.3:
            open_ones.append([0, 1])
        one = open_ones[int(draw.integers(max(0, len(open_ones) - 4), len(open_ones)))]
        grown = int(draw.integers(1, 3))
        one += range(fresh, fresh + grown)
        fresh += grown
        made.append(list(one))
    return made


def tokens_of(contents: list[int]) -> list[int]:
    """Token ids; different contents differ in their first token, so that no part of a block is shared."""
    return [token for content in contents for token in (20 + content, *range(100, 100 + BLOCK - 1))]


def replayed(
    chains: list[list[int]], ram: int, ssd: int, replace: str
) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """Tokens by tier of each request, the blocks that left for good in their order, and those stored after each."""
    trace = block_trace("made", BLOCK, chains)
    blocks = TraceBlocks(trace.parents.tolist(), trace.sizes.tolist(), trace.depths.tolist(), BLOCK)
    tiers = ReplayTiers(ram * BLOCK, ssd * BLOCK, replace, blocks)
    victims: list[int] = []
    left = tiers.counts.left

    def note(key: bytes, nbytes: int, reason: str) -> None:
        victims.append(int.from_bytes(key, "big"))
        left(key, nbytes, reason)

    tiers.counts.left = note  # type: ignore[method-assign]
    found, stored = [], []
    for request in range(len(trace)):
        chain = trace.chain(request).tolist()
        in_ram = tiers.start(chain)
        tiers.read(chain, len(in_ram))
        tiers.end(chain)
        by_tier = {RAM.name: BLOCK * sum(in_ram), SSD.name: BLOCK * (len(in_ram) - sum(in_ram))}
        if sum(by_tier.values()) == BLOCK * len(chain):
            by_tier[RAM.name if in_ram[-1] else SSD.name] -= 1  # the last token of a prompt is always computed
        found.append({tier: tokens for tier, tokens in by_tier.items() if tokens})
        stored.append(tiers.counts.insertions)
    return found, victims, stored


def served(
    model: LoadedModel, policy: str, chains: list[list[int]], stored: list[int], recorder: Recorder | None = None
) -> tuple[list[dict[str, int]], list[int]]:
    """The same of the decoder; blocks are numbered as those of the trace are, by their first appearance."""
    found, victims = [], list[int]()
    with Decoder(model, policy, recorder=recorder, retain=0) as decoder:
        store: Any = decoder.store
        space = Namespace(model.fingerprint, policy_key(Policy.parse(policy)), model.dtype, BLOCK)
        numbers: dict[bytes, int] = {}
        left = store._stats.left

        def note(key: bytes, nbytes: int, reason: str) -> None:
            victims.append(numbers[key])
            left(key, nbytes, reason)

        store._stats.left = note
        for contents, wanted in zip(chains, stored, strict=True):
            tokens = tokens_of(contents)
            for key in k.chain_all(space.root(), k.as_tokens(tokens), BLOCK):
                numbers.setdefault(key, len(numbers))
            done = decoder.generate(tokens, max_tokens=1)
            found.append(dict(done.cached_by_tier))
            until = time.monotonic() + DEADLINE_S
            while store.stats()["stored_blocks"] < wanted and time.monotonic() < until:
                time.sleep(0.001)  # an ended request is stored by the decoder's thread
            store.flush()
    return found, victims


@pytest.mark.parametrize("replace", ["lru", "s3fifo", "sieve", "gdsf", "lfu", "shortest", "superseded"])
@pytest.mark.parametrize("room", [9, 17])
def test_decoder_finds_the_tokens_and_loses_the_blocks_that_the_replay_says(
    replace: str, room: int, bundled: LoadedModel
) -> None:
    chains = prompts(room)
    token_bytes = token_bytes_of(bundled)(Policy.parse("full"))
    policy = f"paged:block={BLOCK},reply=false|ram:ram={room * BLOCK * token_bytes},replace={replace}"
    found, victims, stored = replayed(chains, room, 0, replace)
    assert victims and any(found)
    recorder = Recorder()
    assert served(bundled, policy, chains, stored, recorder) == (found, victims)
    trace = trace_of_events("live", recorder)
    recorded = [trace.chain(request).tolist() for request in range(len(trace))]
    assert replayed(recorded, room, 0, replace)[:2] == (found, victims), "the record names the same blocks"


def file_bytes(model: LoadedModel, folder: Path) -> int:
    """Bytes of the file of one block."""
    with Decoder(model, f"paged:block={BLOCK},reply=false|tiered:dir={folder}", retain=0) as decoder:
        decoder.generate(tokens_of([0]), max_tokens=1)
    sizes = {path.stat().st_size for path in (folder / "blocks").rglob("*") if path.is_file()}
    assert len(sizes) == 1
    return sizes.pop()


@pytest.mark.parametrize("ram", [4, 12])
def test_decoder_finds_the_tokens_in_the_tiers_where_the_replay_finds_them(
    ram: int, bundled: LoadedModel, tmp_path: Path
) -> None:
    chains, ssd = prompts(3), 24
    size = file_bytes(bundled, tmp_path / "one")
    token_bytes = token_bytes_of(bundled)(Policy.parse("full"))
    policy = (
        f"paged:block={BLOCK},reply=false|tiered:ram={ram * BLOCK * token_bytes},ssd={ssd * size + size // 2},"
        f"dir={tmp_path / 'store'}"
    )
    found, victims, stored = replayed(chains, ram, ssd, "lru")
    assert any(SSD.name in one for one in found) and any(RAM.name in one for one in found)
    served_tiers, _ = served(bundled, policy, chains, stored)
    assert served_tiers == found


@pytest.mark.parametrize("ram", ["1GB", "100KB"])
def test_replay_of_a_live_record_finds_the_tokens_that_the_decoder_found(
    ram: str, bundled: LoadedModel, tmp_path: Path
) -> None:
    recorder, draw = Recorder(), np.random.default_rng(5)
    prompts = [tokens_of([0, 1, 2 + one]) for one in range(3)]
    policy = f"paged:block={BLOCK}|tiered:ram={ram},ssd=1GB,dir={tmp_path}"
    with Decoder(bundled, policy, recorder=recorder, retain=0) as decoder:
        for at in [0, 1, 0, 2, 1, 0, 2, 2]:
            done = decoder.generate(prompts[at], max_tokens=7, tags={"conversation": str(at)})
            assert decoder.store is not None
            decoder.store.flush()
            prompts[at] = [*prompts[at], *done.tokens, *draw.integers(20, 100, 21).tolist()]
    trace = trace_of_events("live", recorder)
    size = token_bytes_of(bundled)(Policy.parse("full"))
    [counts] = replay_tiers(trace, ram, "1GB", token_bytes=size, workers=1, progress=False).counts
    matched = recorder.frame("matched")
    assert counts.cached.tolist() == matched["cached_tokens"].to_list()
    assert any(counts.ssd_tokens) == (ram == "100KB")
