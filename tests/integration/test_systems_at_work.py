"""Every system in the decoder: the answers of no cache where it loses nothing, and what its server reuses."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from kvlab.decoder import Decoder
from kvlab.experiments.runner import Runner
from kvlab.models import LoadedModel
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.server.notebook import serve
from kvlab.systems import System, all_systems, policy_of
from tests.architectures import WINDOW, load_recipe

PROMPT = [5 + (37 * n * n + 11 * n) % 2000 for n in range(600)]
TO_THE_TOKEN = (599, 300)
"""Cached tokens of an exact repeat, and of a prompt that departs after 300 tokens."""
CACHED = {
    "omlx": (512, 256),
    "omlx:variant=article": (512, 256),
    "vmlx": (599, 256),
    "vmlx:variant=article": (576, 256),
}
"""Whole blocks of 256 and of 64 tokens; vMLX also finds the end of a prompt, where all of it is there."""


@pytest.fixture(scope="module")
def uncached(bundled: LoadedModel) -> tuple[int, ...]:
    with Decoder(bundled, "full") as decoder:
        return decoder.generate(PROMPT, max_tokens=6).tokens


@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_a_system_answers_as_without_a_cache_and_reuses_what_its_server_does(
    bundled: LoadedModel, system: System, uncached: tuple[int, ...], tmp_path: Path
) -> None:
    with Decoder(bundled, with_ssd_folder(system.policy, tmp_path), config=system.config) as decoder:
        cold = decoder.generate(PROMPT, max_tokens=6)
        again = decoder.generate(PROMPT, max_tokens=6)
        departs = decoder.generate(PROMPT[:300] + PROMPT[:200], max_tokens=1)
    assert cold.cached_tokens == 0
    assert (again.cached_tokens, departs.cached_tokens) == CACHED.get(str(system), TO_THE_TOKEN)
    if system.policy.lossless:
        assert cold.tokens == again.tokens == uncached


WINDOW_BLOCK = -(-512 // WINDOW) * WINDOW
"""oMLX's block for a model with sliding windows: their smallest multiple of 512 tokens or more."""


@pytest.mark.parametrize(("recipe", "block"), [("qwen3", 256), ("gemma3", WINDOW_BLOCK), ("falcon-h1", 2048)])
def test_omlx_takes_its_block_size_from_the_layers_of_the_model(recipe: str, block: int, tmp_path: Path) -> None:
    model = load_recipe(recipe, tmp_path)
    for name in ("omlx", "omlx:variant=article"):
        system = System.parse(name)
        assert policy_of(system).reuse.block == 256, "no model is known"
        reuse = policy_of(system, model).reuse
        assert (reuse.block, reuse.match, reuse.checkpoint % block) == (block, "block", 0)
        assert policy_of(System.parse(f"{name}{',' if ':' in name else ':'}block=64"), model).reuse.block == 64
    assert policy_of(System.parse("vmlx"), model) == System.parse("vmlx").policy


def test_compare_and_serve_settle_a_system_for_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    model = load_recipe("falcon-h1", tmp_path / "model")
    with serve(System.parse("omlx"), model) as server:
        [told] = httpx.get(f"{server.url}/kvlab/state", timeout=60).json()["models"]
    assert "block=2048" in told["policy"]
    runner = Runner("agent", model, turns=1, progress=False)
    outcome = runner.serve(System.parse("omlx"))
    facts = runner.results(System.parse("omlx"), outcome).provenance
    assert facts["systems"]["omlx"]["reuse.block"] == 2048


@pytest.mark.parametrize("last_role", ["user", "tool"])
def test_mlx_lm_keeps_the_system_prompt_of_a_hybrid_unless_the_last_message_is_a_tools(
    last_role: str, tmp_path: Path
) -> None:
    model = load_recipe("falcon-h1", tmp_path)
    rules = {"role": "system", "content": "Answer in one word. Use the tools that you are given."}
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    loop = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    loop += [{"role": "tool", "tool_call_id": "c1", "content": "nothing"}]
    first = [rules, {"role": "user", "content": "One?"}, *(loop if last_role == "tool" else [])]
    with serve(System.parse("mlx-lm"), model, max_tokens=1) as server:
        cached = [
            httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages}, timeout=120).json()["usage"]
            for messages in (first, [rules, {"role": "user", "content": "Two?"}])
        ][-1]["prompt_tokens_details"]["cached_tokens"]
    assert (cached > 10) if last_role == "user" else (cached == 0)


def test_compare_tells_the_decoder_whose_the_last_message_is(bundled: LoadedModel) -> None:
    runner = Runner("agent", bundled, turns=2, progress=False)
    roles = {key: request.messages[-1]["role"] for key, request in runner.requests.items()}
    assert {(turn.conversation, turn.turn): turn.last_role for turn in runner.turns} == roles
    submitted = runner.serve(System.parse("mlx-lm")).recorder.frame("submitted")
    assert submitted["last_role"].to_list() == [turn.last_role for turn in runner.turns]
