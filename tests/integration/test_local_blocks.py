"""``local``: a compressed block is a function of the tokens up to its end, and is stored and restored as any other.

Class of inputs: scorers that need rows, queries or token ids of a block; raw and quantised codecs; float32, 16 bits and
4-bit weights; plain models and one whose other layers have a sliding window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from kvlab.caches import make_caches
from kvlab.caches.retention.block_scores import BlockScores
from kvlab.caches.serialize import own_layers
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.policies.scorers.local import Local
from kvlab.recording import events
from tests.architectures import load_recipe
from tests.conftest import MakeModel
from tests.integration.test_decoder import Log, conversation

BLOCK, ROWS = 32, 8
LOCALS = [
    "local(keydiff):budget=0.25,block=32",
    "local(knorm):budget=0.25,block=32",
    "local(lagkv:lag=4):budget=0.25,block=32",
    "local(expected):budget=0.25,block=32",
    "local(snapkv:window=4):budget=0.25,block=32",
    "local(compactor:chunk=16):budget=0.25,block=32",
    "local(sepllm:separators=7+8+9,latest=4):budget=0.25,block=32",
]
CODECS = ["", "|quantized", "|quantized:bits=4"]
HEAD = conversation(5, 130)
"""Four blocks and two tokens."""
PROMPT = HEAD[:128] + conversation(6, 75)
"""Begins with the same four blocks, and has two more and eleven tokens."""


def answer(decoder: Decoder, prompt: Sequence[int], tokens: int = 12) -> tuple[tuple[int, ...], int]:
    done = decoder.generate(list(prompt), max_tokens=tokens)
    return tuple(done.tokens), done.cached_tokens


def stored(decoder: Decoder, prompt: Sequence[int]) -> list[dict[str, bytes]]:
    """Return the bytes of all blocks of a prompt at rest."""
    assert decoder.store is not None
    payloads, _ = decoder.store.read(decoder.store.match(decoder.namespace(), list(prompt)))
    return [{name: array.tobytes() for name, array in payload.items()} for payload in payloads]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("local", LOCALS)
def test_what_is_restored_equals_what_is_computed_bit_for_bit(llama: LoadedModel, local: str, codec: str) -> None:
    policy = f"{local}{codec}|ram"
    with Decoder(llama, policy) as cold, Decoder(llama, policy) as warm:
        computed, found = answer(cold, PROMPT)
        assert found == 0
        answer(warm, HEAD)
        assert answer(warm, PROMPT) == (computed, 128)
        assert len(stored(cold, PROMPT)) == 6 and stored(warm, PROMPT) == stored(cold, PROMPT)
        assert answer(warm, PROMPT) == (computed, 192)


@pytest.mark.parametrize("codec", CODECS)
def test_blocks_survive_a_restart_in_16_bits_and_under_4_bit_weights(
    mac_model: LoadedModel, codec: str, tmp_path: Path
) -> None:
    policy = f"{LOCALS[0]}{codec}|tiered:dir={tmp_path}"
    with Decoder(mac_model, policy) as decoder:
        computed, _ = answer(decoder, PROMPT)
        before = stored(decoder, PROMPT)
    with Decoder(mac_model, policy) as decoder:
        assert answer(decoder, PROMPT) == (computed, 192)
        assert stored(decoder, PROMPT) == before


def test_a_block_at_rest_has_the_bytes_of_the_rows_that_stay(llama: LoadedModel) -> None:
    with Decoder(llama, "paged:block=32|ram") as whole, Decoder(llama, f"{LOCALS[0]}|ram") as local:
        for decoder in (whole, local):
            answer(decoder, PROMPT)
        sizes = [sum(map(len, stored(decoder, PROMPT[:192])[0].values())) for decoder in (whole, local)]
    layers, heads = 2, 2
    assert sizes[1] == sizes[0] * ROWS // BLOCK + layers * heads * ROWS * 4  # and the positions, int32


@pytest.mark.parametrize("local", [LOCALS[0], LOCALS[3], f"{LOCALS[0]}|quantized"])
def test_requests_in_a_batch_answer_as_alone(llama: LoadedModel, local: str) -> None:
    prompts = [PROMPT, HEAD, PROMPT[:64], conversation(7, 95), conversation(8, 31)]
    with Decoder(llama, local) as decoder:
        alone = [answer(decoder, prompt, 40)[0] for prompt in prompts]
        streams = [decoder.submit(prompt, max_tokens=40) for prompt in prompts]
        assert [tuple(stream.result().tokens) for stream in streams] == alone


def test_requests_with_one_head_wait_for_it_and_compute_it_once(llama: LoadedModel) -> None:
    tails = [conversation(seed, 40) for seed in range(20, 24)]
    with Decoder(llama, f"{LOCALS[0]}|ram") as decoder:
        streams = [decoder.submit(HEAD[:128] + tail, max_tokens=4) for tail in tails]
        done = [stream.result() for stream in streams]
    assert [one.cached_tokens for one in done] == [0, 128, 128, 128]


def test_a_prompt_that_differs_within_a_block_starts_at_its_beginning(llama: LoadedModel) -> None:
    other = [*PROMPT[:100], PROMPT[100] + 1, *PROMPT[101:]]
    with Decoder(llama, f"{LOCALS[0]}|ram") as decoder, Decoder(llama, LOCALS[0]) as alone:
        answer(decoder, PROMPT)
        assert answer(decoder, other) == (answer(alone, other)[0], 96)
        assert answer(decoder, PROMPT[:128])[1] == 96  # the last token is always computed


def test_blocks_of_answers_are_computed_again_by_the_next_prompt(llama: LoadedModel) -> None:
    with Decoder(llama, f"{LOCALS[0]}|ram") as decoder:
        first, _ = answer(decoder, PROMPT, 60)
        assert answer(decoder, [*PROMPT, *first, 5])[1] == 192
        assert answer(decoder, [*PROMPT, *first, 5, 6])[1] == (len(PROMPT) + len(first) + 1) // BLOCK * BLOCK


@pytest.mark.parametrize("local", LOCALS)
def test_keeping_all_rows_of_each_block_changes_no_answer(llama: LoadedModel, local: str) -> None:
    everything = local.replace("budget=0.25", "budget=1.0")
    with Decoder(llama, "full") as full, Decoder(llama, everything) as decoder:
        assert answer(decoder, PROMPT, 40) == answer(full, PROMPT, 40)


class HeldRows(KVCache):
    """mlx-lm's cache, of which a test takes rows; positions go on."""

    taken = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys = keys if self.keys is None else mx.concatenate([self.keys, keys], axis=2)
        self.values = values if self.values is None else mx.concatenate([self.values, values], axis=2)
        self.offset += keys.shape[2]
        return self.keys, self.values

    def make_mask(self, n: int, **_: Any) -> mx.array:
        held = self.offset - self.taken
        return mx.arange(held + n) <= held + mx.arange(n)[:, None]

    def keep(self, block: int, rows: mx.array) -> None:
        """Keep ``rows`` ``[heads, n]`` of the last ``block``."""
        start = self.keys.shape[2] - block
        for name in ("keys", "values"):
            array = getattr(self, name)
            stay = mx.take_along_axis(array[:, :, start:], rows[None, :, :, None], axis=2)
            setattr(self, name, mx.concatenate([array[:, :, :start], stay], axis=2))
        self.taken += block - rows.shape[1]


def test_logits_are_those_of_mlx_lm_s_caches_without_the_rows_that_left(llama: LoadedModel) -> None:
    """The reference evicts by hand: after each block, the rows of the least cosine to the mean of the block's keys."""
    reference = [HeldRows() for _ in llama.model.layers]
    caches = make_caches(llama.model, LOCALS[0])
    for start in range(0, len(PROMPT), BLOCK):
        tokens = mx.array([PROMPT[start : start + BLOCK]])
        wanted, got = llama.model(tokens, cache=reference), llama.model(tokens, cache=caches)
        np.testing.assert_allclose(np.array(got), np.array(wanted), atol=1e-4)
        if tokens.shape[1] == BLOCK:
            for cache in reference:
                cache.keep(BLOCK, mx.array(best_by_keydiff(np.array(cache.keys[0, :, -BLOCK:]), start)))


def best_by_keydiff(keys: np.ndarray, start: int) -> np.ndarray:
    units = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    anchor = units.mean(axis=1, keepdims=True)
    scores = -(units * anchor / np.linalg.norm(anchor, axis=-1, keepdims=True)).sum(axis=-1)
    scores[:, : max(0, 4 - start)] = np.inf
    return np.sort(np.argsort(-scores, axis=-1)[:, :ROWS], axis=-1).astype(np.int32)


@pytest.mark.parametrize("local", LOCALS[:4])
def test_a_chunk_over_several_blocks_gives_what_single_blocks_give(llama: LoadedModel, local: str) -> None:
    by_block, at_once = (make_caches(llama.model, local) for _ in range(2))
    for start in range(0, len(PROMPT), BLOCK):
        wanted = llama.model(mx.array([PROMPT[start : start + BLOCK]]), cache=by_block)[0, -1]
    got = [llama.model(mx.array([part]), cache=at_once)[0, -1] for part in (PROMPT[:150], PROMPT[150:])][-1]
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=1e-4)
    for one, other in zip(own_layers(by_block), own_layers(at_once), strict=True):
        assert np.array_equal(np.array(one.positions()), np.array(other.positions()))
        assert one.length == len(PROMPT) // BLOCK * ROWS + len(PROMPT) % BLOCK


def test_live_bytes_are_the_budget_s(llama: LoadedModel) -> None:
    tokens = 64 * BLOCK
    caches = make_caches(llama.model, LOCALS[0])
    prompt = conversation(9, tokens)
    for start in range(0, tokens, 512):
        mx.eval(llama.model(mx.array([prompt[start : start + 512]]), cache=caches))
    row = 2 * 2 * 64 * 4 // 2  # K and V of a KV head, float32
    for layer in own_layers(caches):
        held = sum(array.nbytes for array in layer.rows.state)
        assert held <= 1.05 * layer.rows.state[0].shape[1] * row * tokens // BLOCK * ROWS + 64 * 2 * row
        assert isinstance(layer.retention, BlockScores) and layer.length == tokens // BLOCK * ROWS


def test_positions_of_restored_rows_are_those_of_computed_ones(llama: LoadedModel) -> None:
    def gone(prompts: list[list[int]]) -> list[np.ndarray]:
        log = Log()
        with Decoder(llama, f"{LOCALS[0]}|ram", recorder=log) as decoder:
            for prompt in prompts:
                answer(decoder, prompt, 1)
        return [event.positions for event in log.of(events.Evicted) if event.positions.min() >= 128]

    cold, warm = gone([PROMPT]), gone([HEAD, PROMPT])
    assert cold and len(warm) == len(cold)
    assert all(np.array_equal(one, other) for one, other in zip(cold, warm, strict=True))


def test_layers_with_a_sliding_window_are_restored_with_the_compressed_ones(tmp_path: Path) -> None:
    loaded = load_recipe("gemma3", tmp_path)
    with Decoder(loaded, f"{LOCALS[0]}|ram") as cold, Decoder(loaded, f"{LOCALS[0]}|ram") as warm:
        prompt = [token % loaded.vocab_size for token in PROMPT]
        computed, _ = answer(cold, prompt)
        answer(warm, prompt[:130])
        assert answer(warm, prompt) == (computed, 128)


def test_other_tiers_and_a_wrapped_scorer_have_keys_of_their_own(llama: LoadedModel, make_model: MakeModel) -> None:
    one, other = Policy.parse(LOCALS[0]), Policy.parse(LOCALS[1])
    assert one.storage_key != other.storage_key and isinstance(one.retention, Local)
    assert Policy.parse(f"{LOCALS[0]}|tiered").reuse == Policy.parse("paged:block=32").reuse
    assert str(Policy.parse(f"{LOCALS[0]}|tiered|paged:block=32")) == f"{one}|tiered"
