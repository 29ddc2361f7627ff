"""Attention of later tokens to a context, and centres of queries, against NumPy references over one whole pass."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches.later_attention import REPEAT, REPEAT_FROM, continuation_attention, repeat_attention
from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.query_centres import query_centres
from kvlab.errors import ModelError
from kvlab.models import LoadedModel
from tests.architectures import load_recipe
from tests.conftest import MakeModel
from tests.integration.test_decoder import conversation

CONTEXT = conversation(5, 90)
LATER = conversation(8, 30)
KV_HEADS = 2


class Letters:
    """A tokenizer of which each text has a few tokens of its own."""

    texts = {REPEAT: [11, 12, 13], REPEAT_FROM: [14, 15]}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return self.texts[text]


def passed(loaded: LoadedModel, tokens: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
    """Queries, keys and scale of each layer after one whole pass, float64 ``[heads, tokens, head_dim]``."""
    seen: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}

    def observe(cache, queries, scale):
        keys = np.array(cache.rows.decode()[0][0].astype(mx.float32)).astype(np.float64)
        seen[cache.place.layer] = np.array(queries[0].astype(mx.float32)).astype(np.float64), keys, scale

    loaded.model(mx.array([tokens]), cache=observed_caches(loaded.model, observe))
    return seen


def weights_of(queries: np.ndarray, keys: np.ndarray, scale: float, at: int, rows: list[int]) -> np.ndarray:
    """Weights of all query heads at position ``at`` among some rows, ``[n_kv_heads, group, rows]``."""
    group = len(queries) // KV_HEADS
    logits = np.array([scale * (keys[head // group, rows] @ queries[head, at]) for head in range(len(queries))])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).reshape(KV_HEADS, group, len(rows))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_continuation_attention_is_what_its_tokens_pay_with_all_rows_there(
    make_model: MakeModel, architecture: str
) -> None:
    loaded = make_model(architecture)
    found = continuation_attention(loaded.model, CONTEXT, LATER)
    length = len(CONTEXT)
    for layer, (queries, keys, scale) in passed(loaded, CONTEXT + LATER).items():
        want = np.zeros((KV_HEADS, length))
        for at in range(length, length + len(LATER)):
            want += weights_of(queries, keys, scale, at, list(range(at + 1)))[..., :length].mean(axis=1)
        np.testing.assert_allclose(found.layers[layer], want, rtol=1e-3, atol=1e-5)
    assert found.tokens == tuple(CONTEXT) and found.computed_tokens == len(LATER) and found.seconds > 0


@pytest.mark.parametrize(("first", "part"), [(0, 2048), (6, 2048), (2, 40)])
def test_repeat_attention_is_the_greatest_weight_among_sinks_part_and_repetition(
    llama: LoadedModel, first: int, part: int
) -> None:
    answer, sinks, length = [21, 22], 4, len(CONTEXT)
    found = repeat_attention(llama.model, Letters(), CONTEXT, first=first, part=part, sinks=sinks, answer=answer)
    want, count = [np.zeros((KV_HEADS, length)) for _ in found.layers], 0
    for start in range(first, length, part):
        repeated = CONTEXT[start : start + part]
        request = [11, 12, 13] if start == first else [14, 15, *CONTEXT[start - 8 : start]]
        tokens = [*request, *answer, *repeated]
        count += len(tokens)
        own, chunk = list(range(min(sinks, start))), list(range(start, start + len(repeated)))
        for layer, (queries, keys, scale) in passed(llama, CONTEXT + tokens).items():
            for at in range(length, length + len(tokens)):
                weights = weights_of(queries, keys, scale, at, [*own, *chunk, *range(length, at + 1)])
                of_chunk = weights[..., len(own) : len(own) + len(chunk)].max(axis=1)
                want[layer][:, chunk] = np.maximum(want[layer][:, chunk], of_chunk)
    for got, wanted in zip(found.layers, want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    assert found.computed_tokens == count


def test_layers_with_a_sliding_window_have_no_scores(tmp_path: Path) -> None:
    loaded = load_recipe("gemma3", tmp_path)
    found = continuation_attention(loaded.model, CONTEXT, LATER)
    assert any(one is None for one in found.layers) and any(one is not None for one in found.layers)


@pytest.mark.parametrize("context", [[], [3]])
def test_nothing_to_measure_is_refused(llama: LoadedModel, context: list[int]) -> None:
    with pytest.raises(ModelError, match=r"give (it )?one"):
        continuation_attention(llama.model, context, [])


def test_query_centres_are_means_before_rope(llama: LoadedModel) -> None:
    prompts = [CONTEXT, LATER]
    found = query_centres(llama.model, prompts)
    attention = [layer.self_attn for layer in llama.model.layers]
    seen: dict[int, list[np.ndarray]] = {}
    for prompt in prompts:
        for layer, (queries, _, _) in passed(llama, prompt).items():
            rope = attention[layer].rope
            each = [
                rope(mx.array(queries[None, :, at : at + 1].astype(np.float32)), offset=-at)
                for at in range(len(prompt))
            ]
            seen.setdefault(layer, []).append(np.concatenate([np.array(one)[0] for one in each], axis=1))
    for layer, parts in seen.items():
        before = np.concatenate(parts, axis=1)
        half = before.shape[-1] // 2
        sizes = np.hypot(before[..., :half], before[..., half:])
        assert found[layer] is not None
        np.testing.assert_allclose(found[layer][0], before.mean(axis=1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[layer][1], np.tile(sizes.mean(axis=1), 2), rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="no prompts"):
        query_centres(llama.model, [])
