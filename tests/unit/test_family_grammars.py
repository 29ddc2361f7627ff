"""Calls that a grammar forces are calls of the family: random logits under it make what the family's parser reads."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest

from kvlab.models import LoadedModel
from kvlab.server.structured.grammar import Constraint, Grammars, Trigger
from tests.answer_kit import FAMILIES, Family, read

PROPERTIES = {
    "handle": {"type": "string"},
    "count": {"type": "integer"},
    "unit": {"type": "string", "enum": ["km", 'm"s']},
    "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": PROPERTIES, "required": ["count", "handle", "unit"]},
        },
    }
    for name in ("find", "find_all")
]
LIMIT = 160
SEEDS = range(3)


@pytest.fixture(scope="module")
def grammars(bundled: LoadedModel) -> Grammars:
    return Grammars(bundled)


def draw(loaded: LoadedModel, constraint: Constraint, seed: int, said: str = "") -> str:
    """The text that random logits make under a constraint, after the tokens of ``said``."""
    rng, made, forced = np.random.default_rng(seed), [1], loaded.encode(said)
    while len(made) <= LIMIT:
        logits = mx.array(rng.normal(0, 3, (1, loaded.vocab_size)).astype(np.float32))
        token = int(mx.argmax(constraint(mx.array(made), logits)).item())
        token = forced[len(made) - 1] if len(made) <= len(forced) else token
        if token in loaded.eos:
            break
        made.append(token)
    return loaded.decode(made[1:])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("many", [False, True])
def test_required_calls_are_read_by_their_family(bundled, grammars, family: Family, many):
    lark = family.format.grammar(TOOLS, grammars.literal, many=many, lenient=False)
    for seed in SEEDS:
        text = draw(bundled, grammars.constraint(max_tokens=LIMIT, matcher=grammars.compile(lark)), seed)
        answer = read(family.format, text, tools=TOOLS, trusted=True)
        assert answer.calls, text
        assert answer.content == "", text
        for name, arguments in answer.calls:
            assert name in ("find", "find_all")
            assert isinstance(arguments["count"], int)
            assert arguments["unit"] in PROPERTIES["unit"]["enum"]
            assert isinstance(arguments["handle"], str)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.format.steered], ids=lambda f: f.name)
def test_calls_that_begin_by_themselves_follow_their_schema(bundled, grammars, family: Family):
    lark = family.format.grammar(TOOLS, grammars.literal, many=False, lenient=True)
    for seed in SEEDS:
        trigger = Trigger(family.format.trigger, grammars.compile(lark), once=True)
        constraint = grammars.constraint(max_tokens=LIMIT, trigger=trigger)
        text = draw(bundled, constraint, seed, said=family.format.trigger)
        answer = read(family.format, text, tools=TOOLS)
        assert answer.calls, text
        assert json.dumps(answer.calls[0][1])
