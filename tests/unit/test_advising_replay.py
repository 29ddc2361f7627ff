"""The replay of plans against the decoder itself: the same cached tokens for every request of every design."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from kvlab.advising import AgentWorkload, Description
from kvlab.advising.kv_bytes import token_bytes_of
from kvlab.advising.replay import replay_of
from kvlab.advising.simulation import LoopSimulation
from kvlab.advising.speed import given_speed
from kvlab.decoder import Decoder
from kvlab.decoder.config import DecoderConfig
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.systems import all_systems, config_of, parse_candidates, policy_of

POLICIES = (
    "full", "paged", "tiered", "paged:block=16,match=block|tiered:ram=0", "snapshot", "slots:n=2,host=0",
    "prompts:count=2", "ram:ram=300KB", "tiered:ram=100KB,ssd=600KB", "prompts:bytes=400KB,order=lru",
    "slots:n=2,unified=false,host=200KB", "paged:live=false,hot=true,match=block,block=32",
)  # fmt: skip
CANDIDATES = [*parse_candidates(POLICIES), *all_systems()]
SESSIONS = Description(agents=3, sessions=2, turns=2, system_tokens=90, turn_tokens=70, answer_tokens=9, think_tokens=5)


def one_by_one(model: LoadedModel) -> AgentWorkload:
    """Requests of three conversations, in turns, as those of one agent; the server is restarted after half of them."""
    own = list(SESSIONS.workload(vocabulary=model.vocab_size, avoid=model.eos).by_agent().values())
    in_turn = [replace(request, agent="one") for requests in zip(*own, strict=True) for request in requests]
    return AgentWorkload("in turns", tuple(in_turn), restarts=1, ends=model.eos)


def sampler(reply: tuple[int, ...]) -> Any:
    tokens = iter(reply)
    return lambda logprobs: mx.full(logprobs.shape[:-1], next(tokens, reply[-1]))


def served(model: LoadedModel, candidate: Any, folder: Path) -> Iterator[int]:
    """Cached tokens of each request in the decoder."""
    policy, config = policy_of(candidate), config_of(candidate) or DecoderConfig()
    if policy.tiers is not None and hasattr(policy.tiers, "dir"):
        tiers = dataclasses.replace(policy.tiers, dir=str(folder))
        policy = Policy(policy.retention, policy.codec, policy.reuse, tiers)
    for [part] in one_by_one(model).parts():
        with Decoder(model, policy, config=config) as decoder:
            for request in part:
                done = decoder.generate(request.prompt, max_tokens=len(request.reply), sampler=sampler(request.reply))
                assert len(done.tokens) == len(request.reply)
                yield done.cached_tokens


def replayed(model: LoadedModel, candidate: Any) -> list[int]:
    """Cached tokens of each request in the replay."""
    policy, workload = policy_of(candidate), one_by_one(model)
    replay = replay_of(policy, token_bytes_of(model)(policy), ends=workload.ends)
    loop = LoopSimulation(replay, config_of(candidate) or DecoderConfig(), given_speed(500, 20))
    return [turn.cached for turn in loop.run(workload).turns]


@pytest.mark.parametrize("candidate", CANDIDATES, ids=str)
def test_replay_finds_the_tokens_that_the_decoder_finds(candidate: Any, llama: LoadedModel, tmp_path: Path) -> None:
    assert replayed(llama, candidate) == list(served(llama, candidate, tmp_path))
