"""Live sequences under ``local`` whose prompts begin with the same blocks hold one copy of the rows that stayed.

Class of inputs: prompts that part at any block, in any order of arrival, of ends and of cancellations; all codecs that
``local`` takes; float32, 16 bits and 4-bit weights; plain models and those with windows or recurrent state beside.
"""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlab.backends.x86 import blas_threads
from kvlab.caches import LayerCache, batch
from kvlab.caches.compressed_blocks import compressed_rows
from kvlab.decoder import Completion, Decoder
from kvlab.models import LoadedModel
from tests.conftest import MakeModel
from tests.helpers import FOUR_BITS, SIXTEEN_BITS, Weights
from tests.integration.test_decoder import conversation
from tests.lab import busy
from tests.zoo.builder import small_model

BLOCK, ROWS = 32, 8
LOCAL = "local(keydiff):budget=0.25,block=32"
Rows = dict[str, bytes]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of products follow what is computed side by side, and round sums otherwise."""
    monkeypatch.setattr(blas_threads, "MIN_MULTIPLICATIONS_FOR_ALL_CORES", math.inf)


class Watched:
    """A decoder's layers as they are while all of ``count`` sequences decode, and the rows of each at its end."""

    def __init__(self, decoder: Decoder, count: int = 0) -> None:
        self._scheduler, self._count = decoder._scheduler, count
        self.shared: list[int] = []
        """Bytes of the arrays of all prefixes, each counted once."""
        self.held: list[int] = []
        """Bytes of all arrays of all layers, each counted once."""
        self.told: list[int] = []
        """What the decoder says that these are."""
        self.peaks: list[int] = []
        self.rows: dict[tuple[int, ...], Rows] = {}
        reuse: Any = self._scheduler.reuse
        keep = reuse.keep

        def keep_and_note(request: Any, caches: Sequence[Any], tokens: Sequence[int]) -> None:
            rows = compressed_rows(caches)
            of_prompt = len(request.prompt) // BLOCK * ROWS
            self.rows[tuple(request.prompt)] = {
                name: np.array(array[:, :, :of_prompt].view(mx.uint8)).tobytes() for name, array in rows.items()
            }
            keep(request, caches, tokens)

        reuse.keep = reuse.keep_cancelled = keep_and_note

    def sample(self, logits: mx.array) -> mx.array:
        running = list(self._scheduler._active.values())
        if len(running) == self._count and all(request.is_decoding and request.tokens for request in running):
            layers: list[LayerCache] = [layer for request in running for layer in request.layers]
            shared = {id(array): array for layer in layers for prefix in layer.prefixes for array in prefix.state}
            own = {id(array): array for layer in layers for array in own_arrays(layer)}
            self.shared.append(sum(array.nbytes for array in shared.values()))
            self.held.append(sum(array.nbytes for array in (shared | own).values()))
            self.told.append(self._scheduler._measure())
            self.peaks.append(mx.get_peak_memory())
            mx.reset_peak_memory()
        return mx.argmax(logits, axis=-1)


def own_arrays(layer: LayerCache) -> list[mx.array]:
    bucket = layer._bucket
    return [*(layer.rows.state if bucket is None else bucket.arrays.values()), *layer.retention.state]


@contextmanager
def watched(loaded: LoadedModel, policy: str, count: int = 0, **options: Any) -> Iterator[tuple[Decoder, Watched]]:
    # Whole blocks, one prompt at a time: cut otherwise, products are rounded otherwise.
    with Decoder(loaded, policy, interleave="none", prefill_prompts=1, **options) as decoder:
        yield decoder, Watched(decoder, count)
    assert decoder.live_bytes() == 0  # measured once the last step has ended, behind the last result
    assert not tree(decoder)._requests


def tree(decoder: Decoder) -> Any:
    found: Any = decoder._scheduler.reuse
    return found._live


def agents(count: int, head: int, tail: int = 40) -> list[list[int]]:
    return [conversation(5, head) + conversation(10 + i, tail + 3 * i) for i in range(count)]


def answers(decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int = 6, **options: Any) -> list[Completion]:
    with busy(decoder):
        streams = [decoder.submit(list(prompt), max_tokens=tokens, **options) for prompt in prompts]
    return [stream.result() for stream in streams]


@pytest.mark.parametrize("codec", ["", "|quantized:bits=4"])
def test_eight_agents_hold_one_prompt_and_eight_tails(
    llama: LoadedModel, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_JOINED_BYTES", 1)  # less than the rows of one sequence of this model
    prompts = agents(8, 2048)
    with watched(llama, f"{LOCAL}{codec}|ram", 8) as (decoder, seen):
        gc.collect()
        before = mx.get_active_memory()
        done = answers(decoder, prompts, 12, sampler=seen.sample)
    with watched(llama, f"{LOCAL}{codec}|ram", 1) as (decoder, alone):
        [one] = answers(decoder, [prompts[0][: 2048 + 1]], 3, sampler=alone.sample)
    head, tails = seen.shared[-1], seen.held[-1] - seen.shared[-1]
    assert [completion.cached_tokens for completion in done] == [0, *[2048] * 7] and one.cached_tokens == 0
    assert alone.held[-1] <= 1.15 * head <= 1.3 * alone.held[-1]
    most = 2 * BLOCK + 2 * len(prompts[-1]) // BLOCK + 256  # rows of a tail, with storage ahead
    assert 0 < tails <= 8 * most * head / (2048 // BLOCK * ROWS)
    assert seen.held == pytest.approx(seen.told, abs=8 * 2 * len(seen.shared))
    # Working memory is that of two layers of two sequences: eight copies would be 8 * head.
    assert max(seen.peaks[1:]) - before < seen.held[-1] + 2 * head + 200_000


@functools.cache
def alone_under(loaded: LoadedModel, policy: str) -> Callable[[tuple[int, ...]], tuple[tuple[int, ...], Rows]]:
    @functools.cache
    def answer(prompt: tuple[int, ...]) -> tuple[tuple[int, ...], Rows]:
        with watched(loaded, policy) as (decoder, seen):
            done = decoder.generate(list(prompt), max_tokens=40)
        return tuple(done.tokens), seen.rows[prompt]

    return answer


TRUNK, BRANCH = conversation(1, 130), conversation(2, 96)
PROMPTS = [
    tuple(TRUNK + BRANCH[:branch] + conversation(20 + i, tail))
    for i, (branch, tail) in enumerate([(0, 75), (96, 10), (96, 64), (60, 31), (34, 1)])
]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(
        st.tuples(st.sampled_from(PROMPTS), st.integers(1, 40), st.one_of(st.none(), st.integers(0, 20))),
        min_size=2,
        max_size=6,
    ),
    together=st.integers(2, 4),
    codec=st.sampled_from(["", "|quantized:bits=4", "|turboquant"]),
)
def test_sequences_that_join_and_leave_in_any_order_answer_as_alone(
    llama: LoadedModel, order: list[tuple[tuple[int, ...], int, int | None]], together: int, codec: str
) -> None:
    policy = f"{LOCAL}{codec}|ram"
    alone = alone_under(llama, policy)
    with watched(llama, policy, max_concurrency=together) as (decoder, seen):
        streams = [decoder.submit(list(prompt), max_tokens=tokens) for prompt, tokens, _ in order]
        for stream, (_, _, until) in zip(streams, order, strict=True):
            for _ in zip(range(until or 0), stream, strict=False):
                pass
            if until is not None:
                stream.cancel()
        done = [stream.result() for stream in streams]
    for completion, (prompt, _, until) in zip(done, order, strict=True):
        tokens, rows = alone(prompt)
        assert tuple(completion.tokens) == tokens[: len(completion.tokens)]
        if until is None:
            assert seen.rows[prompt] == rows


@pytest.mark.parametrize(("model", "weights"), [("llama", SIXTEEN_BITS[0]), ("qwen3", FOUR_BITS[0])])
def test_rows_in_16_bits_and_under_4_bit_weights_are_those_of_each_alone(
    make_model: MakeModel, model: str, weights: Weights
) -> None:
    policy, loaded = f"{LOCAL}|ram", make_model(model, weights)
    prompts = agents(3, 128)
    with watched(loaded, policy, 3) as (decoder, seen):
        done = answers(decoder, prompts, 8, sampler=seen.sample)
    assert [dict(one.cached_by_tier) for one in done] == [{}, {"live": 128}, {"live": 128}]
    assert seen.shared and seen.shared[-1] > 0
    for prompt in prompts:
        assert seen.rows[tuple(prompt)] == alone_under(loaded, policy)(tuple(prompt))[1]


def test_blocks_from_the_ssd_are_shared_after_a_restart(llama: LoadedModel, tmp_path: Path) -> None:
    policy, prompts = f"{LOCAL}|tiered:dir={tmp_path}", agents(4, 256)
    with watched(llama, policy) as (decoder, before):
        first = answers(decoder, prompts)
    with watched(llama, policy, 4) as (decoder, seen):
        again = answers(decoder, prompts, sampler=seen.sample)
    assert [one.tokens for one in again] == [one.tokens for one in first] and seen.rows == before.rows
    # The first is restored; behind the blocks that the others share with it, they restore one of their own.
    assert [set(one.cached_by_tier) for one in again] == [{"ssd"}, *[{"live", "ssd"}] * 3]
    assert [one.cached_tokens for one in again] == [288] * 4
    assert seen.shared[-1] == 256 // BLOCK * ROWS * 2 * 2 * (2 * 64 * 4 + 4)  # layers, heads; K, V and a position


@pytest.mark.parametrize("name", ["gemma3_text", "jamba"])
def test_layers_beside_others_share_what_is_restored_with_these(name: str) -> None:
    """The other layers have a sliding window, or recurrent state, also in a model that is computed one by one."""
    loaded, policy = small_model(name), f"{LOCAL}|paged:block=32,checkpoint=128|ram"
    prompts = [[token % loaded.vocab_size for token in prompt] for prompt in agents(3, 256)]
    with watched(loaded, policy, 3) as (decoder, seen):
        done = answers(decoder, prompts, 8, sampler=seen.sample)
    assert [one.cached_tokens for one in done] == [0, 256, 256]
    rows = sum(len(array) for array in seen.rows[tuple(prompts[0])].values())
    assert rows and seen.shared[-1] == rows * 256 // (len(prompts[0]) // BLOCK * BLOCK)
    for prompt, one in zip(prompts, done, strict=True):
        tokens, alone = alone_under(loaded, policy)(tuple(prompt))
        assert one.tokens == tokens[:8] and seen.rows[tuple(prompt)] == alone


def test_tenants_and_live_false_hold_copies(llama: LoadedModel) -> None:
    prompts = agents(2, 128)
    with watched(llama, f"{LOCAL}|ram", 2) as (decoder, seen):
        with busy(decoder):
            streams = [
                decoder.submit(prompt, max_tokens=6, tenant=name, sampler=seen.sample)
                for prompt, name in zip(prompts, "ab", strict=True)
            ]
        assert [stream.result().cached_tokens for stream in streams] == [0, 0]
    assert seen.shared[-1] == 0
    with Decoder(llama, f"{LOCAL}|paged:block=32,live=false|ram") as decoder:
        assert tree(decoder) is None
        assert [one.cached_tokens for one in answers(decoder, prompts)] == [0, 0]


def test_a_request_that_fails_to_start_leaves_the_others_their_blocks(llama: LoadedModel) -> None:
    prompts = agents(3, 128)
    with watched(llama, f"{LOCAL}|ram") as (decoder, seen):
        reuse: Any = decoder._scheduler.reuse
        segments, fails = reuse.segments, iter([False, True, False])

        def segments_or_error(request: Any) -> list[list[int]]:
            if len(request.prompt) > 1 and next(fails):
                raise RuntimeError("no room")
            return segments(request)  # type: ignore[no-any-return]

        reuse.segments = segments_or_error
        with busy(decoder):
            streams = [decoder.submit(prompt, max_tokens=6) for prompt in prompts]
        with pytest.raises(RuntimeError, match="no room"):
            streams[1].result()
        done = [streams[0].result(), streams[2].result()]
    for prompt, one in zip((prompts[0], prompts[2]), done, strict=True):
        tokens, rows = alone_under(llama, f"{LOCAL}|ram")(tuple(prompt))
        assert one.tokens == tokens[:6] and seen.rows[tuple(prompt)] == rows


@pytest.mark.parametrize("policy", [f"{LOCAL}|ram", "paged:block=32|ram"])
def test_a_match_that_bad_blocks_shorten_below_what_is_live_changes_no_answer(llama: LoadedModel, policy: str) -> None:
    trunk, branch = conversation(1, 160), conversation(2, 64)
    prompts = [trunk + conversation(3, 20), trunk + branch + conversation(4, 20)]
    with Decoder(llama, policy, retain=0) as decoder:
        want = [decoder.generate(prompt, max_tokens=8).tokens for prompt in prompts]
    with Decoder(llama, policy, retain=0) as decoder:
        decoder.generate(trunk + branch, max_tokens=1)
        reuse: Any = decoder._scheduler.reuse
        read = reuse._store.read_into

        def read_one_block(match: Any, *args: Any, **options: Any) -> Any:
            return read(match, *args, **options).shortened(32)

        with busy(decoder):
            streams = [decoder.submit(prompts[0], max_tokens=8)]
            reuse._store.read_into = read_one_block
            streams.append(decoder.submit(prompts[1], max_tokens=8))
        done = [stream.result() for stream in streams]
    assert [one.tokens for one in done] == want
    assert done[1].cached_tokens >= 128
