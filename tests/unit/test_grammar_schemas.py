"""Random schemas out of all constructs: an error in words, or a grammar within limits that answers keep to."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from kvlab.server.errors import ApiError
from kvlab.server.structured import json_schema
from kvlab.server.structured.grammar import BASE_BYTES, BYTES_A_CHARACTER, MAX_COMPLETION_TOKENS
from kvlab.server.structured.request_grammar import MAX_GROWTH_TOKENS, RequestGrammar, Wanted
from kvlab.server.structured.schema_limits import MAX_GRAMMAR_BYTES
from tests.grammar_kit import GrammarKit, tool
from tests.schema_strategy import deep_schemas, promised, schemas, violation, wide_schemas, witness
from tests.soaking import times

MAX_ANSWER_TOKENS = 400
"""Longer answers are left out: they take long, and say no more."""
MAX_LARK_CHARACTERS = 2 * MAX_GRAMMAR_BYTES
STRATEGIES = {"usual": schemas, "deep": deep_schemas, "wide": wide_schemas}


@pytest.fixture(scope="module")
def kit(bundled) -> GrammarKit:
    return GrammarKit(bundled)


def prepared(kit: GrammarKit, wanted: Wanted, where: str) -> RequestGrammar | ApiError:
    """The grammar of one request, or its error, which names whose schema and where, and quotes no grammar."""
    try:
        made = kit.prepare(wanted)
    except ApiError as error:
        message = error.message
        assert error.status == 400
        assert where in message and ("#" in message or "cannot be enforced" in message or "bytes" in message), message
        assert not any(quoted in message for quoted in ("%llguidance", "Regex", "\n", "Traceback")), message
        return error
    assert made is not None and made.grammar is not None
    assert len(made.grammar.shortest) <= MAX_COMPLETION_TOKENS + 100
    assert 0 < made.grammar.growth <= MAX_GROWTH_TOKENS
    assert made.grammar.nbytes <= BASE_BYTES + BYTES_A_CHARACTER * MAX_LARK_CHARACTERS
    return made


def check(kit: GrammarKit, schema: Any, *, as_tool: bool, spare: int, seed: int) -> None:
    where = "tool 'search'" if as_tool else "response_format"
    tools = (tool("search", schema),) if as_tool else ()
    wanted = Wanted(tools=tools, tool_choice="required", many=False) if as_tool else Wanted(schema=schema)
    made = prepared(kit, wanted, where)
    if isinstance(made, ApiError):
        if "cannot be satisfied" in made.message and not as_tool:
            assert witness(promised(schema, ())) == [], made.message
        return
    shortest = list(made.grammar.shortest)
    if len(shortest) >= MAX_COMPLETION_TOKENS:
        return
    assert kit.grammars.vocabulary.completion.completes(made.grammar.matcher, shortest), kit.loaded.decode(shortest)
    if len(shortest) + spare > MAX_ANSWER_TOKENS:
        return
    text = kit.answer(wanted, len(shortest) + spare, seed=seed)
    if as_tool:
        assert text.startswith("<tool_call>") and text.rstrip().endswith("</tool_call>"), text
        value = json_schema.loads(text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"]
        assert isinstance(value, dict)
    else:
        value = json_schema.loads(text)
    if any("…" in open_.path for open_ in made.unenforced):  # a path too long to be said whole
        return
    assert violation(value, promised(schema, made.unenforced)) == "", (text, made.unenforced)


@pytest.mark.parametrize("form", STRATEGIES)
@times(8)
def test_random_schemas_are_refused_in_words_or_kept(kit, form, count):
    """Class: any combination of keywords, type names, references and wrong parts, at any depth and width."""

    @seed(count)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(STRATEGIES[form](), st.booleans(), st.sampled_from([0, 1, 7, 40]), st.integers(0, 99))
    def hold(schema: Any, as_tool: bool, spare: int, number: int) -> None:
        note(json.dumps(schema)[:3000])
        check(kit, schema, as_tool=as_tool, spare=spare, seed=number)

    hold()


@times(6)
def test_random_tools_that_may_be_called_are_never_refused_but_for_their_size(kit, count):
    @seed(count)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(schemas(), deep_schemas()))
    def hold(schema: Any) -> None:
        note(json.dumps(schema)[:3000])
        try:
            made = kit.prepare(Wanted(tools=(tool("search", schema), tool("other", {})), tool_choice="auto"))
        except ApiError as error:
            assert error.status == 400 and "tool 'search' is too large at #" in error.message
            return
        assert made is not None and (made.grammar is not None or made.unenforced)

    hold()


NEVER = {"type": "integer", "minimum": 5, "maximum": 3}
UNKNOWN = {"type": "string", "pattern": r"^\p{Nothing}$"}
"""A pattern that the compiler refuses, so that its part is left open."""
OPTIONAL_PARTS = {
    "an option": {"anyOf": [NEVER, {"type": "string"}], "allOf": [UNKNOWN]},
    "a property": {"type": "object", "properties": {"a": NEVER, "b": UNKNOWN}},
    "items": {"type": "array", "items": NEVER, "prefixItems": [UNKNOWN]},
    "an option of a property": {"type": "object", "properties": {"a": {"oneOf": [NEVER, {}]}, "b": UNKNOWN}},
    "a definition": {"$defs": {"a": NEVER}, "anyOf": [{"$ref": "#/$defs/a"}, UNKNOWN]},
}


@pytest.mark.parametrize("name", OPTIONAL_PARTS)
def test_an_optional_part_without_a_value_refuses_no_schema(kit, name):
    """Class: parts that nothing satisfies where a value needs none of them, beside a part that does not compile."""
    for seed_ in range(3):
        check(kit, OPTIONAL_PARTS[name], as_tool=False, spare=9, seed=seed_)
    assert kit.prepare(Wanted(schema=OPTIONAL_PARTS[name])).unenforced


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": NEVER, "b": NEVER}, "required": ["b"]}, "#/properties/b"),
        ({"type": "array", "prefixItems": [{"anyOf": [NEVER, {}]}, NEVER], "minItems": 2}, "#/prefixItems/1"),
        ({"$defs": {"a": NEVER, "b": NEVER}, "allOf": [{"type": "integer"}, {"$ref": "#/$defs/b"}]}, "#/$defs/b"),
    ],
)
def test_the_path_in_an_error_is_that_of_the_part_that_cannot_be(kit, schema, path):
    with pytest.raises(ApiError, match="response_format cannot be satisfied") as error:
        kit.prepare(Wanted(schema=schema))
    assert f"at {path}:" in error.value.message


@pytest.mark.parametrize(
    "text",
    [
        {"format": "date", "maxLength": 2},
        {"pattern": "^a{5}$", "maxLength": 2},
        {"allOf": [{"format": "ipv4"}, {"format": "uuid"}]},
    ],
)
def test_texts_that_cannot_be_are_refused_without_an_automaton_in_the_message(kit, text):
    schema = {"type": "array", "items": {"type": "string", **text}, "minItems": 1}
    assert isinstance(prepared(kit, Wanted(schema=schema), "response_format"), ApiError)


@pytest.mark.parametrize("kind", ["array", "String", ["integer", "null"]])
def test_tools_whose_arguments_are_no_object_are_refused_in_words(kit, kind):
    """Class: root types of a tool's parameters other than an object, whose calls no client could read."""
    wrong = (tool("search", {"type": kind}),)
    with pytest.raises(ApiError, match="tool 'search' is wrong at #/type: the arguments of a tool are an object"):
        kit.prepare(Wanted(tools=wrong, tool_choice="required"))
    open_ = kit.prepare(Wanted(tools=wrong, tool_choice="auto"))
    assert open_ is not None and open_.grammar is not None and open_.unenforced


def test_arguments_that_may_be_an_object_are_one(kit):
    for seed_ in range(4):
        check(kit, {"type": ["null", "dict"]}, as_tool=True, spare=5, seed=seed_)


OPEN_OBJECTS = {
    "more properties than names": {"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 3},
    "more than optional names": {"type": "object", "properties": {"a": {}}, "minProperties": 3},
    "a constant": {"type": "object", "properties": {"a": {}}, "const": {"b": 1}},
    "constants": {"properties": {"a": {}}, "enum": [{"b": 1}, {"b": 2, "c": 3}]},
}


@pytest.mark.parametrize("name", OPEN_OBJECTS)
def test_objects_that_need_other_names_are_not_closed(kit, name):
    """Class: keywords beside properties that ask for properties of other names."""
    schema = OPEN_OBJECTS[name]
    check(kit, schema, as_tool=False, spare=20, seed=1)
    [value] = witness(schema) or [{"a": 1, "b": 2, "c": 3}]
    assert violation(value, schema) == "" == json_schema.problem(value, json_schema.normal(schema))
