"""Calls that a grammar forces are calls of the family: random logits under it make what the family's parser reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import tokenizer_utils

from kvlab.models import LoadedModel
from kvlab.server.structured.constraint import Constraint, Trigger
from kvlab.server.structured.grammar import Grammars
from tests.answer_kit import FAMILIES, Family, read
from tests.template_kit import Family as StyledFamily
from tests.template_kit import write_model

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
SPARE = 20
"""Tokens beyond those of the shortest call."""
SEEDS = range(3)


@pytest.fixture(scope="module")
def grammars(bundled: LoadedModel) -> Grammars:
    return Grammars(bundled)


def draw(loaded: LoadedModel, constraint: Constraint, limit: int, seed: int, said: str = "") -> str:
    """The text that random logits make under a constraint, after the tokens of ``said``; at most ``limit`` tokens."""
    rng, made, forced = np.random.default_rng(seed), [1], loaded.encode(said)
    while len(made) <= limit:
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
    grammar = grammars.compile(lark)
    limit = len(grammar.shortest) + SPARE
    for seed in SEEDS:
        text = draw(bundled, grammars.constraint(max_tokens=limit, matcher=grammar), limit, seed)
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
    grammar = grammars.compile(lark)
    limit = len(grammar.shortest) + SPARE
    for seed in SEEDS:
        trigger = Trigger(family.format.trigger, grammar, once=True)
        constraint = grammars.constraint(max_tokens=limit, trigger=trigger)
        text = draw(bundled, constraint, limit, seed, said=family.format.trigger)
        answer = read(family.format, text, tools=TOOLS)
        assert answer.calls, text
        assert json.dumps(answer.calls[0][1])


DEEPSEEK = ("calls▁begin", "calls▁end", "call▁begin", "call▁end")
SPECIAL = {
    "harmony": ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"),
    "deepseek-v3": ("<｜tool▁sep｜>", *(f"<｜tool▁{text}｜>" for text in DEEPSEEK)),
    "mistral-args": ("[TOOL_CALLS]", "[ARGS]"),
    "hermes": ("<tool_call>", "</tool_call>"),
}
"""Markers that are tokens of the family's vocabulary."""


class Vocabulary:
    """The bundled vocabulary with special tokens, as far as grammars look at a model."""

    def __init__(self, folder: Path, special: tuple[str, ...]) -> None:
        style = StyledFamily("qwen2_5", ("<|im_end|>", *[text for text in special if text == "<|call|>"]), special)
        self.tokenizer = tokenizer_utils.load(write_model(style, folder))
        self.eos = frozenset(self.tokenizer.convert_tokens_to_ids(end) for end in style.ends)
        self.vocab_size, self.name = len(self.tokenizer), "styled"

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(list(ids)))


@pytest.mark.parametrize("name", SPECIAL)
def test_markers_that_are_special_tokens_are_written_as_such(name, tmp_path):
    family = next(family for family in FAMILIES if family.name == name)
    vocabulary = Vocabulary(tmp_path / "model", SPECIAL[name])
    grammars = Grammars(vocabulary)
    for lenient in (False, True):
        grammar = grammars.compile(family.format.grammar(TOOLS, grammars.literal, many=False, lenient=lenient))
        limit = len(grammar.shortest) + SPARE
        for seed in SEEDS:
            trigger = Trigger(family.format.trigger, grammar, once=True) if lenient else None
            constraint = grammars.constraint(max_tokens=limit, matcher=None if lenient else grammar, trigger=trigger)
            said = family.format.trigger if lenient else ""
            text = draw(vocabulary, constraint, limit, seed, said=said)
            assert read(family.format, text, tools=TOOLS).calls, text
            first = vocabulary.encode(text)[0]
            assert vocabulary.decode([first]) in SPECIAL[name]
