"""A forward pass that is computed layer by layer fills the caches as a whole one does."""

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kvlab.backends import current
from kvlab.bench.models import random_qwen3
from kvlab.caches import own_caches
from kvlab.caches.factory import layerwise_model
from kvlab.decoder.prefill.chunked import ChunkedPrefill
from kvlab.models import LoadedModel
from kvlab.policies import Policy

PROMPTS = [np.random.default_rng(seed).integers(3, 250, length).tolist() for seed, length in ((0, 90), (1, 61))]


@pytest.fixture(params=["bundled", "qwen3"])
def model(request: pytest.FixtureRequest, bundled: LoadedModel) -> nn.Module:
    return bundled.model if request.param == "bundled" else random_qwen3(layers=5, width=128, vocabulary=300).model


@pytest.fixture
def prefill(model: nn.Module) -> ChunkedPrefill:
    """The prompts, of which nothing is computed."""
    caches = [own_caches(model, Policy()) for _ in PROMPTS]
    batch = ChunkedPrefill(model, [0, 1], caches, max_tokens=[1, 1], logits_processors=[[], []], samplers=[None, None])
    batch.backend = current()
    batch.layerwise, batch.stream = layerwise_model(model), mx.default_stream(mx.default_device())
    return batch


def whole(model: nn.Module, *chunks: Sequence[int]) -> list[Any]:
    """Caches of one sequence, computed by the model as it is."""
    caches = own_caches(model, Policy())
    for chunk in chunks:
        model(mx.array([list(chunk)]), cache=caches)
    return caches


def same(caches: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(caches, wanted, strict=True):
        assert one.offset == other.offset
        for name, rows in other.all_rows().items():
            np.testing.assert_allclose(np.array(one.all_rows()[name]), np.array(rows), rtol=1e-4, atol=1e-4)


def rounds_to_finish(prefill: ChunkedPrefill, *, work: int) -> int:
    """Compute the chunk, ``work`` at a time; the number of rounds that took."""
    prefill.work, rounds = work, 0
    while prefill.is_under_way:
        prefill.advance()
        rounds += 1
    return rounds


@pytest.mark.parametrize("work", [1, 60, 10_000])
def test_chunks_of_several_lengths_fill_caches_as_whole_passes_do(prefill, model, work):
    depth = len(model.layers)
    prefill.work = 0
    prefill.prompt([prompt[:50] for prompt in PROMPTS])
    assert rounds_to_finish(prefill, work=work) == (1 if work > 1000 else depth - 1)
    prefill.prompt([PROMPTS[0][50:90], PROMPTS[1][50:61]])
    rounds_to_finish(prefill, work=work)
    assert prefill.tokens == PROMPTS
    for i, prompt in enumerate(PROMPTS):
        same(prefill.extract_cache(i), whole(model, prompt[:50], prompt[50:]))


def test_pass_interrupted_by_time_within_a_layer_fills_caches_as_whole_passes_do(prefill, model, monkeypatch):
    if current().is_preemptible:  # so that even these prompts have several blocks
        monkeypatch.setattr("kvlab.backends.x86.flash_attention.BLOCK_KEYS", 16)
    prefill.work, prefill.until = 0, -math.inf
    prefill.prompt([prompt[:50] for prompt in PROMPTS])
    rounds = rounds_to_finish(prefill, work=1)
    assert rounds >= len(model.layers) - 1 and (rounds > 2 * len(model.layers) or not current().is_preemptible)
    prefill.prompt([PROMPTS[0][50:90], PROMPTS[1][50:61]])
    same(prefill.extract_cache(0), whole(model, PROMPTS[0][:50]))
    assert prefill.is_under_way
    rounds_to_finish(prefill, work=1)
    for i, prompt in enumerate(PROMPTS):
        same(prefill.extract_cache(i), whole(model, prompt[:50], prompt[50:]))


def test_sequence_extracted_between_layers_has_the_same_tokens_in_all_layers(prefill, model):
    prefill.work = 0
    prefill.prompt([prompt[:50] for prompt in PROMPTS])
    rounds_to_finish(prefill, work=1)
    prefill.work = 1
    prefill.prompt([PROMPTS[0][50:90], PROMPTS[1][50:61]])
    left = prefill.extract_cache(0)
    same(left, whole(model, PROMPTS[0][:50]))
    assert prefill.tokens[0] == PROMPTS[0][:50]
    prefill.filter([1])
    rounds_to_finish(prefill, work=1)
    assert prefill.tokens == [PROMPTS[1]]
    same(left, whole(model, PROMPTS[0][:50]))
    same(prefill.extract_cache(0), whole(model, PROMPTS[1][:50], PROMPTS[1][50:]))


def test_chunk_ends_when_its_last_sequence_is_removed(prefill):
    prefill.work = 1
    prefill.prompt(PROMPTS)
    prefill.filter([])
    assert not prefill.is_under_way and not prefill.uids


def test_removed_prompt_leaves_no_cache_in_memory(prefill):
    prefill.work = None
    prefill.prompt(PROMPTS)
    held = [weakref.ref(layer) for layer in prefill.extract_cache(0)]
    prefill.filter([])
    gc.collect()
    assert not [one for one in held if one() is not None]


class Between(nn.Module):
    """A model that changes hidden states between its layers."""

    def __init__(self, model: nn.Module, work: Callable[[mx.array], mx.array]) -> None:
        super().__init__()
        self.model = model.model
        self.head = model
        self._work = work

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def make_cache(self) -> list[Any]:
        return own_caches(self.head, Policy())

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        x = self.model.embed_tokens(inputs)
        for layer, one in zip(self.model.layers, cache, strict=True):
            x = self._work(layer(x, one.make_mask(inputs.shape[1]), cache=one))
        return self.model.embed_tokens.as_linear(self.model.norm(x))


def test_model_that_changes_hidden_states_between_layers_is_not_split(llama: LoadedModel):
    assert layerwise_model(Between(llama.model, lambda x: 2 * x)).depth == 1
    assert layerwise_model(Between(llama.model, lambda x: x)).depth == len(llama.model.layers)
    assert layerwise_model(llama.model).depth == len(llama.model.layers)
