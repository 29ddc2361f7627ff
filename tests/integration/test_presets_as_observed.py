"""The presets are asked what real servers were asked, and find as many cached tokens, to the token.

The observations are rows (``experiments/real_servers``); the servers are not needed. What differs is named, with its
reason, in ``experiments/real_servers/differences.toml``, and nothing else does.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kvlab.bench.models import random_qwen3
from kvlab.systems import System
from kvlab.systems.observations import read_observations
from kvlab.systems.replay import compare_with_session, most_tokens

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = {session.setup: session for session in read_observations(ROOT / "experiments" / "rows" / "real_servers.csv")}
HELD = tomllib.loads((ROOT / "experiments" / "real_servers" / "differences.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def model():
    """One layer whose vocabulary holds all tokens of the observations; what it says is not asked."""
    return random_qwen3(layers=1, width=128, vocabulary=most_tokens(SESSIONS.values()))


def test_every_observation_of_another_server_has_a_preset_to_hold():
    others = {name for name, session in SESSIONS.items() if session.facts["server"] not in ("kvlab", "vllm-mlx")}
    assert others == set(HELD)


@pytest.mark.parametrize("setup", HELD)
def test_a_preset_finds_as_many_cached_tokens_as_the_server_did(model, setup):
    session, held = SESSIONS[setup], HELD[setup]
    compared = compare_with_session(System.parse(held["system"]), model, session)
    assert len(compared) == sum(step.is_request for step in session.steps) > 50
    found = {f"{one.step.scenario}: {one.step.step}": one.ours for one in compared if not one.equal}
    named = {
        step: ours
        for entry in held.get("differs", [])
        for step, ours in zip(entry["steps"], entry["ours"], strict=True)
    }
    assert found == named
