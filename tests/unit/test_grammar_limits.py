"""Schemas of any depth and size, by every construct that nests or multiplies: a clear error or a grammar, never more.

The classes: nesting of JSON, chains and circles of references, wide lists, products of options, automata of numbers and
patterns, constants. What is refused names its tool and a path, and quotes no grammar.
"""

import asyncio
import json

import pytest

from kvlab.server.errors import ApiError
from kvlab.server.structured.enforceable import enforceable
from kvlab.server.structured.grammar import Grammars
from kvlab.server.structured.request_grammar import Wanted
from kvlab.server.structured.tool_formats import SPACING
from kvlab.server.structured.trial import Trials
from tests.grammar_kit import GrammarKit, tool

TEXT = {"type": "string"}


@pytest.fixture(scope="module")
def kit(bundled) -> GrammarKit:
    return GrammarKit(bundled)


def nested(wrap, depth: int):
    schema = TEXT
    for _ in range(depth):
        schema = wrap(schema)
    return schema


def chained(wrap, length: int):
    names = {f"d{i}": wrap({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$defs": names | {f"d{length}": TEXT}} | obj({"$ref": "#/$defs/d0"})


def obj(part, *, required: bool = True):
    return {"type": "object", "properties": {"n": part}, "required": ["n"] if required else []}


WRAPS = {
    "properties": obj,
    "items": lambda part: {"type": "array", "items": part},
    "prefixItems": lambda part: {"type": "array", "prefixItems": [part], "minItems": 1},
    "additionalProperties": lambda part: {"type": "object", "additionalProperties": part},
    "patternProperties": lambda part: {"type": "object", "patternProperties": {"^a": part}},
    "anyOf": lambda part: {"anyOf": [part, {"type": "null"}]},
    "oneOf": lambda part: {"oneOf": [{"type": "null"}, part]},
    "allOf": lambda part: {"allOf": [part]},
    "not": lambda part: {"not": part},
    "if": lambda part: {"if": part, "then": part if part is TEXT else {}},
    "dependentSchemas": lambda part: {"dependentSchemas": {"a": part}},
    "$defs": lambda part: {"$defs": {"a": part}, "type": "string"},
    "propertyNames": lambda part: {"propertyNames": part},
    "examples": lambda part: {"examples": [part], "type": "string"},
}
CHAINS = {name: wrap for name, wrap in WRAPS.items() if name not in ("$defs", "examples")} | {
    "plain": lambda part: part,
    "beside": lambda part: {**part, "description": "x"},
    "optional": lambda part: obj(part, required=False),
}


def outcome(kit: GrammarKit, schema) -> str:
    """The error of a required call, or nothing; a call of random tokens is valid JSON."""
    wanted = Wanted(tools=(tool("search", schema),), tool_choice="required")
    try:
        prepared = kit.prepare(wanted)
    except ApiError as error:
        assert error.status == 400
        assert "tool 'search'" in error.message and "#" in error.message, error.message
        assert "%llguidance" not in error.message and "\n" not in error.message
        return error.message
    assert prepared is not None and prepared.grammar is not None
    return ""


@pytest.mark.parametrize("name", WRAPS)
def test_deep_nesting_is_refused_and_shallow_is_not(kit, name):
    assert "levels inside each other" in outcome(kit, nested(WRAPS[name], 120))
    assert "levels inside each other" in outcome(kit, nested(WRAPS[name], 5_000))
    assert outcome(kit, obj(nested(WRAPS[name], 6))) == ""


@pytest.mark.parametrize("name", CHAINS)
def test_long_chains_of_references_never_reach_the_compilers_stack(kit, name):
    said = outcome(kit, chained(CHAINS[name], 3_000))
    # Keywords that no grammar expresses are left open: their chains are never followed.
    assert "references through more than" in said or name in ("not", "if", "dependentSchemas", "propertyNames"), said
    assert outcome(kit, chained(CHAINS[name], 20)) == ""


@pytest.mark.parametrize("wanted", [{"response": True}, {"auto": True}])
def test_deep_schemas_are_refused_wherever_they_come_from(kit, wanted):
    deep = nested(obj, 2_000)
    ask = Wanted(schema=deep) if "response" in wanted else Wanted(tools=(tool("search", deep),), tool_choice="auto")
    with pytest.raises(ApiError, match="response_format" if "response" in wanted else "tool 'search'"):
        kit.prepare(ask)


WIDE = {
    "anyOf": {"anyOf": [obj({"const": i}) for i in range(5_000)]},
    "oneOf": {"oneOf": [obj({"const": i}) for i in range(5_000)]},
    "properties": {"type": "object", "properties": {f"p{i}": TEXT for i in range(5_000)}},
    "patternProperties": {"type": "object", "patternProperties": {f"^a{i}": TEXT for i in range(300)}},
    "prefixItems": {"type": "array", "prefixItems": [TEXT] * 5_000},
    "enum": {"enum": [f"value {i}" for i in range(30_000)]},
    "const": {"const": "x" * 200_000},
    "product": {"allOf": [{"anyOf": [obj({"const": j}) for j in range(2)]} for _ in range(12)]},
    "values": {"type": "object", "default": list(range(60_000))},
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_schemas_are_refused_before_they_are_compiled(kit, name):
    assert outcome(kit, obj(WIDE[name]))


OPEN = {
    "multipleOf": {"type": "integer", "multipleOf": 999_983},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": 991}, {"multipleOf": 997}]},
    "decimals": {"type": "number", "multipleOf": 0.000123457},
    "pattern": {"type": "string", "pattern": "^((x{1,100}){1,100}){1,100}$"},
    "nested pattern": {"type": "string", "pattern": "(" * 500 + "a" + ")*" * 500},
    "long pattern": {"type": "string", "pattern": "a?" * 5_000},
    "intersection": {"allOf": [{"type": "string", "pattern": f"^(.*{chr(97 + i)}.*)$"} for i in range(12)]},
}


@pytest.mark.parametrize("name", OPEN)
def test_costly_keywords_are_left_open_and_said(kit, name):
    prepared = kit.prepare(Wanted(schema=obj(OPEN[name])))
    assert prepared is not None and prepared.unenforced
    assert json.loads(kit.answer(Wanted(schema=obj(OPEN[name])), 60)).keys() == {"n"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
    ],
)
def test_schemas_that_contain_themselves_without_end_are_refused(kit, schema):
    with pytest.raises(ApiError, match="cannot be"):
        kit.prepare(Wanted(schema=schema))


def test_a_trial_ends_at_its_cpu_time_and_names_the_tool():
    costly = enforceable(obj({"type": "integer"}), "tool 'slow'", strict=True)
    number = {"type": "integer", "multipleOf": 999_983}
    costly = costly._replace(schema={**costly.schema, "properties": {"n": number}})
    plain = enforceable(obj(TEXT), "tool 'plain'", strict=True)

    async def run() -> None:
        await Trials(SPACING, cpu_seconds=0.2).run([plain, costly], ["tool 'plain'", "tool 'slow'"], strict=True)

    with pytest.raises(ApiError, match="tool 'slow' cannot be enforced: it takes too long"):
        asyncio.run(run())


def test_a_crash_of_the_compiler_costs_its_client_one_error():
    chain = {"$defs": {f"r{i}": obj({"$ref": f"#/$defs/r{i + 1}"}) for i in range(40_000)}}
    source = enforceable(obj(TEXT), "tool 'deep'", strict=True)
    source = source._replace(schema={**chain, "$ref": "#/$defs/r0"})
    with pytest.raises(ApiError, match="tool 'deep' cannot be"):
        asyncio.run(Trials(SPACING, cpu_seconds=20).run([source], ["tool 'deep'"], strict=True))


def test_a_cancelled_trial_ends_its_process():
    source = enforceable(obj(TEXT), "tool 'slow'", strict=True)
    source = source._replace(schema={"type": "integer", "multipleOf": 999_983})
    trials = Trials(SPACING, cpu_seconds=1000)

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(trials.run([source], ["tool 'slow'"], strict=True), 1.5)
        assert trials.running == 0

    asyncio.run(run())


def test_kept_grammars_stay_within_their_bytes(bundled):
    grammars = Grammars(bundled, max_bytes=450_000)
    for i in range(12):
        grammars.compile(f'start: "{i}"')
        assert 0 < grammars.nbytes <= grammars.max_bytes
    assert len(grammars) == 4
