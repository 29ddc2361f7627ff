"""What one more agent costs in memory, under one candidate: live KV while it runs, and bytes in RAM while it waits.

All agents have the same system prompt and tools, and a conversation of their own of several turns behind it.

- **Running.** `kv_bytes_live` of kind `running`: the most live KV while `n` agents are answered side by side, less
  that of one agent alone, by the `n - 1` agents more. `n` is RUNNING, or as many as the candidate runs side by side;
  one that runs a single request at a time has the live KV of that one. Answers cannot end before all agents run.
- **Waiting.** WAITING agents are answered one after another, and each then waits for its next turn. After each of them
  the memory in use is read: what MLX has allocated beside the model, and what the store holds in RAM. `kv_bytes_ram` of
  kind `waiting` is the median of its increases by the second, third, ... agent, over those at which it grew; where none
  of them made it grow and no more than one is kept (there is one place: the newcomer takes it), the increase by the
  first agent. KV on SSD costs no memory.
- **Kept.** `hit_ratio` of kind `waiting`: then each of them sends its next turn, the last one first, so that no
  candidate loses what it still has; the share of agents for which more than half of what is their own was found.

Sequences in a GB of memory are 1e9 divided by these bytes: agents that run, or agents that wait where all are kept.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from kvlab.decoder import Decoder
from kvlab.decoder.config import DecoderConfig
from kvlab.errors import RunError
from kvlab.experiments.conversations import Turn
from kvlab.experiments.runner import Runner
from kvlab.models import LoadedModel
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.results import Row, row
from kvlab.systems import Candidate, config_of, policy_of

WORKLOAD = "stack-memory"
RUNNING, WAITING = 4, 12
HISTORY_TURNS = 10
"""Turns of an agent's own conversation before it waits."""
ANSWER_TOKENS = 64
"""Long enough that answers of agents that came together overlap."""
WAITING_ANSWER_TOKENS = 16
GREW_SHARE = 0.08
"""An increase below this share of an agent's live KV is the allocator's, and none of a sequence."""
OWN_SHARE = 0.5
UNRELATED_TOKENS = 64
IDLE_S = 60.0
"""How long a candidate may take until what it keeps is at rest."""


@dataclass(frozen=True)
class Agents:
    """The prompts of some agents: one turn each, and the turn after it. All begin with the same tokens."""

    turns: tuple[Turn, ...]
    later: tuple[Turn, ...]

    @classmethod
    def of(cls, model: LoadedModel, count: int, history: int = HISTORY_TURNS, seed: int = 0) -> Agents:
        """Make ``count`` agents under a model."""
        made = Runner("agent", model, turns=history + 1, n=count, seed=seed, progress=False).turns
        return cls(*(tuple(turn for turn in made if turn.turn == at) for at in (history, history + 1)))

    @property
    def common(self) -> int:
        """How many tokens all prompts begin with."""
        prompts = [turn.prompt for turn in self.turns]
        return next(i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)


def memory_rows(candidate: Candidate, model: LoadedModel, agents: Agents, running: int = RUNNING) -> list[Row]:
    """Return the rows of one candidate. Raises KvlabError."""
    if len(agents.turns) < max(2, running):
        raise RunError(f"{len(agents.turns)} agents are too few; write {max(2, running)} or more")
    config = config_of(candidate) or DecoderConfig()
    side_by_side = min(running, config.max_concurrency)
    alone = _most_live(candidate, model, agents.turns[:1])
    live = float(alone)
    if side_by_side > 1:
        live = (_most_live(candidate, model, agents.turns[:side_by_side]) - alone) / (side_by_side - 1)
    held, kept = _waiting(candidate, model, agents)
    added = one_more(held, GREW_SHARE * alone, kept)
    about: dict[str, Any] = {"model": model.name, "seed": 0}
    size = statistics.mean(len(turn.prompt) for turn in agents.turns)

    def new(metric: str, value: float, kind: str, n: int) -> Row:
        return row(str(candidate), WORKLOAD, metric, value, kind=kind, n=n, **about)

    return [
        new("kv_bytes_live", live, "running", side_by_side),
        new("kv_bytes_ram", added, "waiting", len(agents.turns)),
        new("hit_ratio", kept / len(agents.turns), "waiting", len(agents.turns)),
        new("prompt_tokens", size, "waiting", len(agents.turns)),
    ]


def one_more(held: Sequence[float], least: float, kept: int) -> float:
    """Return what one more waiting agent adds to the bytes ``held`` after each of them; see the top of this file.

    Increases below ``least`` are none. ``held`` begins with the bytes before the first agent; ``kept`` of them were
    found again.
    """
    increases = [after - before for before, after in zip(held, held[1:], strict=False)]
    grown = [one for one in increases[1:] if one > least]
    if grown:
        return float(statistics.median(grown))
    return float(increases[0]) if increases[0] > least and kept <= 1 else 0.0


def _most_live(candidate: Candidate, model: LoadedModel, turns: Sequence[Turn]) -> int:
    """Return the most bytes of live KV while these turns are answered side by side."""
    ends = mx.array(sorted({int(token) for token in model.tokenizer.eos_token_ids}))

    def goes_on(_: mx.array, logits: mx.array) -> mx.array:
        logits[..., ends] = -mx.inf
        return logits

    most = 0
    with _decoder(candidate, model) as decoder:
        streams = [decoder.submit(turn.prompt, max_tokens=ANSWER_TOKENS, logits_processors=[goes_on]) for turn in turns]
        for stream in streams:
            for _ in stream:
                most = max(most, decoder.live_bytes())
    return most


def _waiting(candidate: Candidate, model: LoadedModel, agents: Agents) -> tuple[list[float], int]:
    """Return the bytes in memory before the first agent and after each, and how many agents' KV was kept."""
    with _decoder(candidate, model) as decoder:
        unrelated = agents.turns[0].prompt[: -UNRELATED_TOKENS - 1 : -1]
        for _ in range(2):  # buffers that the first requests leave are no agent's
            decoder.generate(unrelated, max_tokens=2)
        held = [_held(decoder)]
        for turn in agents.turns:
            decoder.generate(turn.prompt, max_tokens=WAITING_ANSWER_TOKENS)
            held.append(_held(decoder))
        found = 0
        for before, turn in reversed(list(zip(agents.turns, agents.later, strict=True))):
            done = decoder.generate(turn.prompt, max_tokens=WAITING_ANSWER_TOKENS)
            own = len(before.prompt) - agents.common
            found += done.cached_tokens - agents.common > OWN_SHARE * own
    return held, found


def _held(decoder: Decoder) -> float:
    """Return the bytes of KV in memory while nothing runs: MLX's own arrays, and the store's RAM tier."""
    deadline, before = time.monotonic() + IDLE_S, -1
    while (now := _in_use(decoder)) != before and time.monotonic() < deadline:
        before = now  # what is written behind a request still holds memory
        time.sleep(0.05)
    return float(now)


def _in_use(decoder: Decoder) -> int:
    at_rest = decoder.tiers_bytes().get("ram", 0) if decoder.store is not None else 0
    return int(mx.get_active_memory()) + at_rest


class _decoder:  # noqa: N801
    """A new decoder of a candidate, whose files lie in a temporary folder meanwhile."""

    def __init__(self, candidate: Candidate, model: LoadedModel) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvlab-store-")
        policy = with_ssd_folder(policy_of(candidate, model), Path(self._folder.name))
        config = config_of(candidate)
        self._decoder = Decoder(model, policy, **({} if config is None else {"config": config}))

    def __enter__(self) -> Decoder:
        return self._decoder.__enter__()

    def __exit__(self, *error: object) -> None:
        self._decoder.__exit__(*error)
        self._folder.cleanup()
