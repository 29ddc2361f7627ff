"""Scorers that read the model's layers, a threshold or a file, in live sequences.

Class of inputs: models with grouped heads, sliding windows beside plain layers, quantized weights and 16 bits; requests
alone, side by side, in chunks and behind stored KV.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches import make_caches
from kvlab.caches.later_attention import ContextScores, continuation_attention
from kvlab.caches.query_centres import query_centres
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError, PolicyWarning
from kvlab.models import LoadedModel
from kvlab.policies import KNorm, Policy
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.policies.scorers.triattention import save_centres
from tests.architectures import load_recipe
from tests.conftest import MakeModel
from tests.helpers import Weights
from tests.integration.test_decoder import conversation
from tests.integration.test_scorers_at_work import BUDGET, PROMPT, observed

OF_LAYERS = ["expected:budget=40,window=16", "criticalkv(snapkv:window=8):budget=40", "compactor:budget=40,chunk=32"]


def after_prompt(loaded: LoadedModel, policy: str, tokens: list[int] = PROMPT) -> list:
    caches = make_caches(loaded.model, policy, prompt_tokens=len(tokens), token_ids=lambda: tokens)
    loaded.model(mx.array([tokens]), cache=caches)
    mx.eval([cache.state for cache in caches])
    return caches


def answer_within_budget(loaded: LoadedModel, policy: str) -> None:
    caches = after_prompt(loaded, policy)
    for token in range(10, 40):
        logits = loaded.model(mx.array([[token]]), cache=caches)
        assert all(len(row) <= BUDGET for cache in caches for row in kept(cache))
    assert np.isfinite(np.array(logits.astype(mx.float32))).all()


def kept(cache) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in np.array(cache.positions())[0]]


# -- the model's layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", OF_LAYERS)
def test_plain_layers_of_a_model_with_sliding_windows_keep_the_budget(tmp_path: Path, policy: str) -> None:
    loaded = load_recipe("gemma3", tmp_path)
    held = [cache for cache in after_prompt(loaded, policy) if hasattr(cache, "attend")]
    assert held and all(len(row) == BUDGET for cache in held for row in kept(cache))


@pytest.mark.parametrize("policy", OF_LAYERS)
def test_any_weights_are_read(make_model: MakeModel, mac_weights: Weights, policy: str) -> None:
    answer_within_budget(make_model("llama", mac_weights), policy)


@pytest.mark.parametrize("policy", OF_LAYERS)
def test_quantized_kv_is_scored_as_it_is_read(llama: LoadedModel, policy: str) -> None:
    answer_within_budget(llama, f"{policy}|quantized:bits=8,group=32")


def test_queries_of_the_prompt_are_freed_at_its_end(llama: LoadedModel) -> None:
    of_scorer, of_keys = (
        [cache.nbytes for cache in after_prompt(llama, policy)]
        for policy in ("compactor:budget=40", "keydiff:budget=40")
    )
    assert of_scorer == of_keys


def test_expected_keeps_the_same_rows_behind_stored_kv(llama: LoadedModel) -> None:
    """The queries of its window are computed again, so that a prompt that was stored before answers as a new one."""
    prompt = conversation(5, 300)
    with Decoder(llama, "expected:budget=64,window=32|paged:block=16") as decoder:
        cold = decoder.generate(prompt, max_tokens=16)
        warm = decoder.generate(prompt, max_tokens=16)
    assert warm.cached_tokens > 200 and warm.tokens == cold.tokens


def test_a_budget_below_the_window_of_expected_is_no_cause_to_warn(llama: LoadedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PolicyWarning)
        after_prompt(llama, "expected:budget=40,window=128")


def test_a_model_without_rope_is_refused_before_it_runs(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvlab.caches import model_layers

    monkeypatch.setattr(model_layers, "rotates_back", lambda rope: False)
    loaded = make_model("llama", num_hidden_layers=1)
    with pytest.raises(PolicyError, match="RoPE"):
        Decoder(loaded, "expected:budget=0.25")


# -- thresholds -------------------------------------------------------------------------------------------------------


def test_dms_keeps_rows_by_their_scores_alone(llama: LoadedModel) -> None:
    whole = make_caches(llama.model, "full|quantized")  # hooks the model
    llama.model(mx.array([PROMPT]), cache=whole)
    [first, *_] = after_prompt(llama, "knorm:budget=150")
    norms = np.linalg.norm(np.array(first.rows.decode()[0][0].astype(mx.float32)), axis=-1)
    threshold = -float(np.quantile(norms, 0.3))
    [cache, *_] = after_prompt(llama, f"dms(knorm):threshold={threshold},recent=20")
    for row, lengths in zip(kept(cache), norms, strict=True):
        assert row == sorted({*np.flatnonzero(-lengths >= threshold).tolist(), *range(130, 150)})
    assert cache.length == max(map(len, kept(cache))) < len(PROMPT)


@pytest.mark.parametrize("policy", ["dms(knorm):threshold=-8.0,recent=20,interval=4"])
def test_dms_in_a_batch_and_in_chunks_is_as_alone(llama: LoadedModel, policy: str) -> None:
    prompts = [PROMPT, PROMPT[20:]]
    together, gone = observed(llama, policy, prompts, 12)
    for request, prompt in enumerate(prompts):
        [alone], left = observed(llama, policy, [prompt], 12)
        assert together[request] == alone and gone[request] == left[0]
    assert observed(llama, policy, [PROMPT], 1, 48)[1] == observed(llama, policy, [PROMPT], 1)[1]


def test_dms_without_a_threshold_is_refused_before_it_runs(llama: LoadedModel) -> None:
    with pytest.raises(PolicyError, match="threshold=VALUE"), Decoder(llama, "dms(knorm)") as decoder:
        decoder.generate(PROMPT, max_tokens=2)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(llama_module: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ContextScores]:
    path = tmp_path_factory.mktemp("scores") / "scores.npz"
    with Decoder(llama_module, "full") as decoder:
        answer = list(decoder.generate(PROMPT, max_tokens=16).tokens)
    found = continuation_attention(llama_module.model, PROMPT, answer)
    save_scores(path, found.tokens, found.layers)
    return path, found


@pytest.fixture(scope="module")
def llama_module(make_model: MakeModel) -> LoadedModel:
    return make_model("llama")


def test_oracle_keeps_the_rows_with_the_most_attention_to_come(llama: LoadedModel, scored) -> None:
    path, found = scored
    for layer, cache in enumerate(after_prompt(llama, f"oracle:scores={path},budget=40")):
        for row, scores in zip(kept(cache), found.layers[layer], strict=True):
            gone = np.setdiff1d(np.arange(len(PROMPT)), row)
            assert len(row) == BUDGET and scores[row].min() >= scores[gone].max() * (1 - 2**-14)


@pytest.mark.parametrize("method", ["oracle", "kvzip", "kvzip:even=true"])
def test_scores_of_a_file_serve_a_decoder_within_the_budget(llama: LoadedModel, scored, method: str) -> None:
    path, _ = scored
    policy = f"{method}{',' if ':' in method else ':'}scores={path},budget=40,interval=4"
    [answer], gone = observed(llama, policy, [PROMPT], 20)
    assert len(answer) == 20 and len(gone[0]) > 1
    assert observed(llama, policy, [PROMPT], 20, 48)[1] == gone


def test_scores_of_another_prompt_are_refused(llama: LoadedModel, scored) -> None:
    path, _ = scored
    with pytest.raises(PolicyError, match="another prompt"):
        after_prompt(llama, f"oracle:scores={path},budget=40", conversation(9, 150))


def test_triattention_in_a_batch_and_in_chunks_is_as_alone(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "centres.npz"
    save_centres(path, query_centres(llama.model, [conversation(seed, 80) for seed in (1, 2)]))
    policy = f"triattention:calibration={path},budget=40,interval=4,prefix=8"
    prompts = [PROMPT, PROMPT[20:]]
    together, gone = observed(llama, policy, prompts, 12)
    for request, prompt in enumerate(prompts):
        [alone], left = observed(llama, policy, [prompt], 12)
        assert together[request] == alone and gone[request] == left[0] and len(left[0]) > 1
        assert not set(range(8)) & {row for eviction in left[0] for head in eviction for row in head}
    assert observed(llama, policy, [PROMPT], 1, 48)[1] == observed(llama, policy, [PROMPT], 1)[1]
    assert Policy.parse(policy).retention.window == KNorm().window == 0
