"""The presets are asked what real servers were asked, and find as many cached tokens, to the token.

The observations are rows (``experiments/real_servers``); the servers are not needed. What differs is named, with its
reason, in ``experiments/real_servers/differences.toml``, and nothing else does.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.models import gemma3_text

from kvlab.bench.models import random_qwen3
from kvlab.models import LoadedModel
from kvlab.systems import System
from kvlab.systems.observations import read_observations
from kvlab.systems.replay import compare_with_session, most_tokens

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = {session.setup: session for session in read_observations(ROOT / "experiments" / "rows" / "real_servers.csv")}
HELD = tomllib.loads((ROOT / "experiments" / "real_servers" / "differences.toml").read_text(encoding="utf-8"))


WINDOWED = ("window-chain", "gemma-3-270m")
"""Models of the observations of servers with sliding windows."""


@pytest.fixture(scope="session")
def models():
    """Models whose vocabulary holds all tokens of the observations, without and with windows; what they say is not
    asked."""
    vocabulary = most_tokens(SESSIONS.values())
    return {False: random_qwen3(layers=1, width=128, vocabulary=vocabulary), True: windowed(vocabulary)}


def windowed(vocabulary: int) -> LoadedModel:
    """Return a layer with a window of 512 tokens, and one without, as those of Gemma 3; their weights are all equal."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "head_dim": 64}
    windows = {"sliding_window": 512, "sliding_window_pattern": 2, "num_hidden_layers": 2}
    config = {"model_type": "gemma3_text", "query_pre_attn_scalar": 64, "vocab_size": vocabulary, **sizes, **windows}
    model = gemma3_text.Model(gemma3_text.ModelArgs.from_dict(config))
    model.update(tree_map(lambda array: mx.full(array.shape, 0.01), model.parameters()))
    mx.eval(model.parameters())
    tokenizer = SimpleNamespace(eos_token_ids=[0], vocab_size=vocabulary)
    return LoadedModel(model, tokenizer, "windows", Path(), "float32", 2)


def test_every_observation_of_another_server_has_a_preset_to_hold():
    others = {name for name, session in SESSIONS.items() if session.facts["server"] not in ("kvlab", "vllm-mlx")}
    assert others == set(HELD)


@pytest.mark.parametrize("setup", HELD)
def test_a_preset_finds_as_many_cached_tokens_as_the_server_did(models, setup):
    session, held = SESSIONS[setup], HELD[setup]
    model = models[session.facts["model"] in WINDOWED]
    compared = compare_with_session(System.parse(held["system"]), model, session)
    assert len(compared) == sum(step.is_request for step in session.steps) > 30
    found = {f"{one.step.scenario}: {one.step.step}": one.ours for one in compared if not one.equal}
    named = {
        step: ours
        for entry in held.get("differs", [])
        for step, ours in zip(entry["steps"], entry["ours"], strict=True)
    }
    assert found == named
