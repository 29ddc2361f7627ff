"""Fifteen turns of a coding agent with Claude Code's habits, on both protocols, before and after a restart.

What must hold: **from the second turn on, at least 95 % of the tokens that the server has seen are cached**. Seen is
the turn before: the tokens of its prompt and those of its answer. ``cached / (prompt + answer of the turn before)`` is
above 1 where side requests share more. The share of the whole prompt, ``cached / prompt``, is printed beside it: it
is smaller by what is new in a turn, which nothing can have cached.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvlab.models import bundled_path
from kvlab.workloads.agent import LOOKUPS
from kvlab.workloads.desk import RULES, TOOLS
from kvlab.workloads.words import NAMES, THINGS, value
from tests.architectures import RECIPES, write_recipe
from tests.coding_agent import Claude, Proxy, Session, Turn
from tests.server_kit import Served

TURNS, RESTART_BEFORE = 15, 8
LEAST_CACHED = 0.95


def session(*, rules: list[str], tools: Any) -> Session:
    rng = Random(0)
    names = iter(rng.sample(NAMES, 100))
    questions = (rng.choice(LOOKUPS).format(thing=rng.choice(THINGS), name=next(names)) for _ in itertools.count())

    def result(name: str, given: dict[str, Any]) -> str:
        who = str(given.get("handle", "@nobody"))
        return f'{{"{name.partition("_")[2]}": {{"{who[:40]}": "{value(Random(who))}"}}}}'

    made = Session(rules, tools, questions, result)
    made.resume({"name": "find_badge", "input": {"handle": "@mira"}})
    return made


def bundled(_: Path) -> tuple[Path, Session]:
    return bundled_path(), session(rules=["You are a command line tool.", RULES], tools=TOOLS)


def hybrid(folder: Path) -> tuple[Path, Session]:
    """Recurrent layers and random weights: its answers are noise, with a call in every second turn."""
    write_recipe(RECIPES["qwen3-next"], folder)
    return folder, session(rules=["You are a command line tool.", RULES.split("\n\n")[0]], tools=TOOLS[:2])


def shares(turns: list[Turn]) -> list[float]:
    """Cached tokens over those seen, from the second turn on."""
    return [turn.cached / (before.prompt + before.answer) for before, turn in itertools.pairwise(turns)]


@pytest.mark.parametrize("client", [Claude, Proxy])
@pytest.mark.parametrize("model", [bundled, hybrid])
def test_each_turn_starts_from_the_one_before(
    tmp_path: Path, client: type[Claude] | type[Proxy], model: Callable[[Path], tuple[Path, Session]]
) -> None:
    folder, talk = model(tmp_path / "model")
    agent = client(talk, max_tokens=96 if model is hybrid else 48, force_calls=model is hybrid)
    options = ("--policy", f"tiered:dir={tmp_path / 'store'}", "--model", str(folder))
    server = Served(*options, home=tmp_path)
    try:
        for number in range(1, TURNS + 1):
            if number == RESTART_BEFORE:
                assert server.terminate() == 0
                server = Served(*options, home=tmp_path)
            agent.turn(server.url)
    finally:
        server.__exit__()
        for share, turn in zip([0.0, *shares(talk.turns)], talk.turns, strict=True):
            print(f"{turn}: {share:.3f} of the seen, {turn.cached / turn.prompt:.3f} of the prompt")
    assert all(turn.counted in (None, turn.prompt) for turn in talk.turns)
    assert sum(turn.calls for turn in talk.turns) >= 4
    assert min(shares(talk.turns)) >= LEAST_CACHED
