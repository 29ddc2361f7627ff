"""What grammars promise holds: whole texts at any token limit, keywords left open, numbers that readers take."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlab.server.errors import ApiError
from kvlab.server.generation.sampling import Sampling, SeededSampler, sampler
from kvlab.server.structured import json_schema
from kvlab.server.structured.enforceable import FORMATS
from kvlab.server.structured.request_grammar import Wanted
from kvlab.server.structured.type_names import json_type
from tests.grammar_kit import GrammarKit, tool

FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
TEXT = {"type": "string"}


@pytest.fixture(scope="module")
def kit(bundled) -> GrammarKit:
    return GrammarKit(bundled)


def filled(n: int, part=TEXT):
    return {
        "type": "object",
        "properties": {f"f_{i}": part for i in range(n)},
        "required": [f"f_{i}" for i in range(n)],
    }


def shortest(kit: GrammarKit, wanted: Wanted) -> int:
    return len(kit.prepare(wanted).grammar.shortest)


# -- the token limit ------------------------------------------------------------------------------------------------


@FEW
@given(n=st.integers(0, 12), spare=st.integers(0, 60), seed=st.integers(0, 999), many=st.booleans())
def test_a_call_that_fits_comes_out_whole(kit, n, spare, seed, many):
    """Class: tools whose shortest call takes most of the limit, at any limit from it on, hot."""
    wanted = Wanted(tools=(tool("fill", filled(n)),), tool_choice="required", many=many)
    text = kit.answer(wanted, shortest(kit, wanted) + spare, seed=seed)
    calls = [part for part in text.split("<tool_call>") if part.strip()]
    assert calls
    for call in calls:
        assert call.rstrip().endswith("</tool_call>"), text
        assert len(kit.form.parse(call.rstrip().removesuffix("</tool_call>"), wanted.tools)) == 1


TEXTS = {name: {"type": "string", "format": name} for name in FORMATS} | {
    "pattern": {"type": "string", "pattern": r"^[a-z]{3,}@[a-z]+\.com$"},
    "brackets": {"type": "string", "pattern": r"^[}\]]+x$"},
    "length": {"type": "string", "minLength": 40},
    "enum": {"enum": ["x", "a much longer text than the other"]},
    "multiple": {"type": "integer", "multipleOf": 15, "minimum": 30},
    "large": {"type": "number", "minimum": 1e17},
    "branch": {"anyOf": [{"type": "null"}, filled(8)]},
    "itself": {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "array", "items": {"$ref": "#"}}}},
    "any": {},
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_limit_cuts_no_json(kit, name, wrapped):
    """Class: strings that no early quote ends, values that may grow for ever, branches of unequal length."""
    schema = {"type": "array", "items": TEXTS[name], "minItems": 2} if wrapped else TEXTS[name]
    wanted = Wanted(schema=schema)
    for spare in (0, 1, 8, 30):
        favour = (")", "%", "1", "e", '{"', "[", "a", "}")
        text = kit.answer(wanted, shortest(kit, wanted) + spare, seed=spare, favour=favour if spare % 2 else ())
        value = json_schema.loads(text)
        assert json_schema.problem(value, schema) == "", text


def test_thinking_ends_where_the_answer_still_fits(kit):
    wanted = Wanted(schema=filled(3), thinking="</tool_response>")
    limit = shortest(kit, wanted) + 30
    text = kit.answer(wanted, limit)
    assert json_schema.problem(json.loads(text.rpartition("</tool_response>")[2]), filled(3)) == ""


# -- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema",
    [{"type": "number"}, {"type": "integer"}, {}, {"type": "object"}, {"type": "array", "items": {"type": "number"}}],
)
@pytest.mark.parametrize("favour", ["123456789", "9e", "0.1", "-e+9"])
def test_numbers_are_those_that_readers_take(kit, schema, favour):
    """Class: digits, fractions and exponents without end, in typed and in free values."""
    for seed in range(2):
        value = json_schema.loads(kit.answer(Wanted(schema=schema), 200, seed=seed, favour=tuple(favour)))
        json.dumps(value, allow_nan=False)


@pytest.mark.parametrize("text", ["1e999", "-1e400", "9" * 18_000, "NaN", "[Infinity]", '{"a": -Infinity}'])
def test_numbers_that_readers_disagree_on_are_no_json(kit, text):
    with pytest.raises(ValueError):
        json_schema.loads(text)
    assert kit.form.parse(f'{{"name": "fill", "arguments": {{"a": {text}}}}}', [tool("fill", {"type": "object"})]) == []


# -- keywords -------------------------------------------------------------------------------------------------------


def test_required_names_without_a_property_are_open(kit):
    for schema in (
        {"type": "object", "properties": {"a": TEXT}, "required": ["a", "b"]},
        {"properties": {}, "required": ["x y"]},
        {"type": "object", "properties": {"a": {"properties": {}, "required": ["c"]}}, "required": ["a"]},
    ):
        value = json.loads(kit.answer(Wanted(schema=schema), 60))
        assert json_schema.problem(value, schema) == ""


@pytest.mark.parametrize("name", ["path", "password", "binary", "uri-reference", "regex", "int32", "color", "x-y"])
def test_unknown_formats_are_annotations(kit, name):
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": name}}, "required": ["a"]}
    prepared = kit.prepare(Wanted(tools=(tool("t", schema),), tool_choice="required"))
    assert prepared.grammar is not None and not prepared.unenforced


LEFT = {
    "uniqueItems": {"type": "array", "items": {"enum": [1]}, "minItems": 2, "uniqueItems": True},
    "not": {"not": {"type": ["object", "array", "string", "number", "boolean", "null"]}},
    "if": {"if": True, "then": False},
    "propertyNames": {"type": "object", "minProperties": 1, "propertyNames": False},
    "contains": {"type": "array", "contains": TEXT, "maxItems": 0},
    "dependentRequired": {"properties": {"a": {}}, "required": ["a"], "dependentRequired": {"a": ["b"]}},
    "pattern": {"enum": ["a"], "type": "string", "pattern": "(?!a)b"},
    "oneOf": {"oneOf": [{"type": "integer"}, {"minimum": 0}], "const": 3},
}


@pytest.mark.parametrize("keyword", LEFT)
def test_what_no_grammar_expresses_is_checked_afterwards_and_said(kit, keyword):
    """Class: keywords that need more than a grammar; each schema here has no valid value, so the check finds it."""
    schema = {"type": "object", "properties": {"a": LEFT[keyword]}, "required": ["a"]}
    wanted = Wanted(schema=schema)
    report = kit.prepare(wanted).report(kit.answer(wanted, 80), [])
    assert {"schema": "response_format", "path": "#/properties/a", "keyword": keyword} == {
        key: report[0][key] for key in ("schema", "path", "keyword")
    }
    assert report[-1]["violated"]


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "#/properties/a"),
        ({"type": "string", "minLength": -1}, "#/properties/a/minLength"),
        ({"$ref": "#/$defs/none"}, "#/properties/a/$ref"),
        ({"type": "object", "properties": 5}, "#/properties/a/properties"),
        ({"enum": []}, "#/properties/a/enum"),
        ({"multipleOf": 0}, "#/properties/a/multipleOf"),
        ({"const": float("inf")}, "#/properties/a/const"),
        (7, "#/properties/a"),
    ],
)
def test_wrong_schemas_are_errors_with_tool_and_path_where_a_call_was_promised(kit, schema, path):
    wrong = tool("search", {"type": "object", "properties": {"a": schema}, "required": ["a"]})
    with pytest.raises(ApiError) as error:
        kit.prepare(Wanted(tools=(tool("other", {}), wrong), tool_choice="required"))
    assert "tool 'search'" in error.value.message and f"{path}:" in error.value.message
    assert "%llguidance" not in error.value.message
    open_ = kit.prepare(Wanted(tools=(tool("other", {}), wrong), tool_choice="auto"))
    assert open_ is not None and open_.unenforced


NAMES = {
    "object": "HashMap dict Map Hashtable Dict<String,Integer> map[string]int object",
    "array": "ArrayList List<String> list[int] tuple Array Queue Set String[] Vector",
    "string": "String str char varchar(20) text CHAR",
    "integer": "int Long short byte BigInteger int64 Integer",
    "number": "float Double decimal Number BigDecimal",
    "boolean": "Boolean bool",
    "null": "None void NoneType",
}


@pytest.mark.parametrize("wanted", NAMES)
def test_type_names_of_catalogues_are_mapped(wanted):
    assert {name: json_type(name) for name in NAMES[wanted].split()} == dict.fromkeys(NAMES[wanted].split(), wanted)


@pytest.mark.parametrize("name", ["", "any", "Color", "function", "file path", 5, None, ["String", "Odd"], {}])
def test_other_type_names_leave_the_value_open(kit, name):
    schema = {"type": "dict", "properties": {"a": {"type": name}}, "required": ["a"]}
    assert "a" in json.loads(kit.answer(Wanted(schema=schema), 60))


# -- calls or JSON --------------------------------------------------------------------------------------------------


def test_with_tools_and_a_schema_the_answer_is_a_call_or_json(kit):
    wanted = Wanted(tools=(tool("fill", filled(1)),), tool_choice="auto", schema=filled(2))
    limit = shortest(kit, wanted) + 80
    said = kit.answer(wanted, limit, favour=("{",))
    assert json_schema.problem(json.loads(said), filled(2)) == ""
    call = kit.answer(wanted, limit, favour=("<tool_call>",))
    assert call.startswith("<tool_call>") and "</tool_call>" in call


# -- cost of checks, temperature ------------------------------------------------------------------------------------


def test_checks_of_hostile_schemas_end():
    twice = {"anyOf": [{"items": {"$ref": "#"}, "type": "array"}, {"items": {"$ref": "#"}, "minItems": 9}]}
    value: list = []
    for _ in range(40):
        value = [value]
    assert json_schema.problem(value, twice) == ""
    assert json_schema.problem("a" * 60 + "!", {"pattern": "^(a|a)*$"}) in (
        "",
        f"{'a' * 60 + '!'!r} does not match '^(a|a)*$'",
    )


@pytest.mark.parametrize("temperature", [1e-40, 5e-324, 1e-9])
@pytest.mark.parametrize("seed", [None, 7])
def test_tiny_temperatures_are_greedy(temperature, seed):
    assert sampler(Sampling(temperature=temperature, seed=seed), 0, 10) is None
    assert isinstance(sampler(Sampling(temperature=0.01, seed=7), 0, 10), SeededSampler)
