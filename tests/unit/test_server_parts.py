"""The server's parts that need no server: settings, keys, schemas, reading text, grammars, prompts."""

import json

import mlx.core as mx
import numpy as np
import pytest

from kvlab.models import LoadedModel
from kvlab.server.errors import ApiError
from kvlab.server.generation.prompt_cache import PromptCache
from kvlab.server.generation.sampling import Logprobs, Penalties, Sampling, SeededSampler
from kvlab.server.structured import json_schema
from kvlab.server.structured.grammar import Grammars, Trigger
from kvlab.server.structured.shortest_completion import ShortestCompletion
from kvlab.server.structured.tool_families.choose import tool_format
from kvlab.server.structured.tool_formats import ToolFormat, json_rule
from kvlab.workloads.desk import TOOLS


def test_errors_have_the_shape_of_their_protocol():
    error = ApiError(429, "full")
    assert error.body("/v1/chat/completions")["error"]["type"] == "rate_limit_error"
    assert error.body("/v1/messages") == {"type": "error", "error": {"type": "rate_limit_error", "message": "full"}}


# -- schemas --------------------------------------------------------------------------------------------------------


def test_schemas_of_tool_catalogues_become_sound_and_closed():
    made = json_schema.normal({"type": "dict", "properties": {"a": {"type": "float"}, "b": {"type": "any"}}})
    assert made == {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {}},
        "additionalProperties": False,
    }
    both = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert json_schema.normal(both) == both
    assert json_schema.normal({"type": "object"}) == {"type": "object"}


def test_references_to_other_places_are_never_fetched():
    assert json_schema.problem({"a": 1}, {"$ref": "http://127.0.0.1:9/schema.json"}) == ""
    assert json_schema.problem({"a": 1}, {"properties": {"a": {"type": "string"}}}) == "1 is not of type 'string'"


# -- grammars -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grammars(bundled) -> Grammars:
    return Grammars(bundled)


@pytest.fixture(scope="module")
def form(bundled) -> ToolFormat:
    return tool_format(bundled.tokenizer)


def generate(
    grammars: Grammars, loaded: LoadedModel, constraint, tokens: int, seed: int = 0, said=(), pauses: bool = False
) -> list[int]:
    """Tokens drawn from random logits under a constraint, called as mlx-lm calls it; twice where the decoder pauses."""
    rng = np.random.default_rng(seed)
    context = [1, 2, 3]
    made: list[int] = []
    while len(made) < tokens:
        logits = mx.array(rng.normal(0, 3, (1, loaded.vocab_size)).astype(np.float32))
        if pauses and rng.random() < 0.3:
            constraint(mx.array([*context, *made]), logits)
        masked = constraint(mx.array([*context, *made]), logits)
        token = said[len(made)] if len(made) < len(said) else int(mx.argmax(masked).item())
        made.append(token)
        if token in loaded.eos:
            return made[:-1]
    return made


@pytest.mark.parametrize("seed", range(8))
def test_random_logits_make_valid_calls_before_the_length_ends(bundled, grammars, form, seed):
    matcher = grammars.compile(form.grammar(TOOLS, grammars.literal, many=True, lenient=False))
    limit = 40 + 20 * seed
    text = bundled.decode(
        generate(grammars, bundled, grammars.constraint(max_tokens=limit, matcher=matcher), limit, seed)
    )
    parts = [part for part in text.split("<tool_call>") if part.strip()]
    assert parts
    for part in parts:
        assert part.rstrip().endswith("</tool_call>")
        assert len(form.parse(part.rstrip().removesuffix("</tool_call>"), TOOLS)) == 1


def test_a_call_that_begins_by_itself_follows_its_schema(bundled, grammars, form):
    lark = form.grammar(TOOLS, grammars.literal, many=False, lenient=True)
    trigger = Trigger(form.start, grammars.compile(lark))
    said = bundled.encode("Well, <tool_call>")
    constraint = grammars.constraint(max_tokens=120, trigger=trigger)
    text = bundled.decode(generate(grammars, bundled, constraint, 120, said=said))
    body = text.partition("<tool_call>")[2].partition("</tool_call>")[0]
    assert len(form.parse(body, TOOLS)) == 1


SCHEMAS = [
    {"type": "object"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "number"}}, "required": ["a", "b"]},
    {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}},
        "required": ["date"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("seed", range(3))
def test_random_logits_make_valid_json(bundled, grammars, schema, seed):
    matcher = grammars.compile("%llguidance {}\nstart: json\njson: " + json_rule(json_schema.normal(schema)))
    text = bundled.decode(generate(grammars, bundled, grammars.constraint(max_tokens=60, matcher=matcher), 60, seed))
    assert json_schema.problem(json.loads(text), schema) == ""


@pytest.mark.parametrize("seed", range(6))
def test_a_pause_changes_nothing_under_a_grammar(bundled, grammars, form, seed):
    matcher = grammars.compile(form.grammar(TOOLS, grammars.literal, many=False, lenient=False))
    constraint = grammars.constraint(max_tokens=40, matcher=matcher)
    text = bundled.decode(generate(grammars, bundled, constraint, 40, seed, pauses=True))
    assert len(form.parse(text.partition("<tool_call>")[2].partition("</tool_call>")[0], TOOLS)) == 1


def test_a_pause_changes_neither_draws_nor_log_probabilities():
    logits = [mx.random.normal((1, 50), key=mx.random.key(i)) for i in range(9)]

    def draw(pauses: bool) -> tuple[list[int], list[float]]:
        seeded, logprobs, tokens = SeededSampler(Sampling(temperature=1.0), 7), Logprobs(2), [1]
        for one in logits:
            for _ in range(1 + pauses):
                said = logprobs(mx.array(tokens), seeded.note_position(mx.array(tokens), one))
                token = int(seeded(said - mx.logsumexp(said, axis=-1, keepdims=True)).item())
            tokens.append(token)
            logprobs.token_out(token)
        return tokens, [entry.logprob for entry in logprobs.entries]

    assert draw(True) == draw(False)
    assert len(draw(False)[1]) == len(logits) - 1


def test_shortest_completion_is_short(bundled, grammars):
    closer = ShortestCompletion(grammars.tokenizer, bundled.vocab_size, bundled.eos)
    matcher = grammars.compile("%llguidance {}\nstart: json\njson: " + json_rule({"type": "object"})).deep_copy()
    for token in bundled.encode('{"a": [1, {"b": "some words and {braces'):
        assert matcher.consume_token(token)
    plan = closer.plan(matcher, 100)
    assert len(plan) <= 6
    assert json.loads(
        '{"a": [1, {"b": "some words and {braces' + bundled.decode([t for t in plan if t not in bundled.eos])
    )


def test_a_schema_that_cannot_be_enforced_is_named(grammars):
    with pytest.raises(ApiError, match="cannot be enforced") as error:
        grammars.compile("%llguidance {}\nstart: json\njson: " + json_rule({"type": "string", "pattern": "(?=x)"}))
    assert error.value.status == 400


def test_text_that_is_no_call_is_not_parsed_as_one(form):
    for text in (
        "",
        "{",
        '{"name": "nobody", "arguments": {}}',
        '{"name": "find_badge", "arguments": {}}',
        "[1]",
        "null",
    ):
        assert form.parse(text, TOOLS) == []
    [call] = form.parse('{"name": "find_badge", "arguments": "{\\"handle\\": 5}"}', TOOLS)
    assert json.loads(call.arguments) == {"handle": "5"}


# -- prompts --------------------------------------------------------------------------------------------------------


def test_an_answer_comes_back_as_the_tokens_that_were_generated(bundled):
    prompts = PromptCache(bundled)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Find the badge of @mira."}]
    prompt = prompts.render(messages, TOOLS)
    # The same call with other spacing than the template's: rendering it anew would end the common prefix here.
    ids = bundled.encode('<tool_call>{"name":"find_badge","arguments":{"handle":"@mira"}}</tool_call>')
    call = {"id": "x", "type": "function", "function": {"name": "find_badge", "arguments": '{"handle": "@mira"}'}}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"function": call["function"]}]}
    prompts.remember(prompt, answer, ids)
    later = [*messages, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "{}"}]
    again = prompts.render(later, TOOLS)
    known = [*prompt.ids, *ids]
    assert again.ids[: len(known)] == known
    assert again.reused == len(known)
    rendered = prompts.text(later, TOOLS, {})
    assert (
        bundled.decode(again.ids[len(known) :])
        == rendered[rendered.index("<|im_end|>\n<|im_start|>user\n<tool_resp") :]
    )
    assert prompts.render(later, TOOLS[:3]).reused == 0


def test_a_broken_prefix_is_traced_to_its_message(bundled):
    prompts = PromptCache(bundled)
    messages = [{"role": role, "content": f"words {i}"} for i, role in enumerate(["system", "user", "assistant"] * 4)]
    prompt = prompts.render(messages)
    for index in range(len(messages)):
        other = [dict(message) for message in messages]
        other[index]["content"] = "other"
        ids = prompts.render(other).ids
        differs = next(i for i, (a, b) in enumerate(zip(prompt.ids, ids, strict=False)) if a != b)
        assert prompts.message_at(prompt, differs) == index


def test_invalid_unicode_is_refused(bundled):
    with pytest.raises(ApiError, match="no text"):
        PromptCache(bundled).encode("\ud800")


# -- sampling -------------------------------------------------------------------------------------------------------


def test_penalties_count_generated_tokens_only():
    logits = mx.zeros((1, 8))
    made = Penalties(Sampling(presence=1.0, frequency=0.5), 2)(mx.array([7, 7, 3, 3, 4]), logits)
    assert made.tolist() == [[0, 0, 0, -2.0, -1.5, 0, 0, 0]]
    made = Penalties(Sampling(repetition=2.0), 2)(mx.array([7, 3]), mx.array([[1.0, -1.0] * 4]))
    assert made.tolist() == [[1, -1, 1, -2, 1, -1, 1, -2]]
