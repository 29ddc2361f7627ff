"""Tools as catalogues have them: no tool is refused for the names of its types, and none of its types is left open."""

import json

import pytest

from kvlab.server.structured.request_grammar import Wanted
from kvlab.server.structured.type_names import json_type
from tests.catalogue import functions, needs_catalogue, type_names
from tests.grammar_kit import GrammarKit, tool

pytestmark = needs_catalogue
STEP = 25
"""CI takes each function of this distance, and the first one of each type name."""
OPEN_NAMES = {"any"}


@pytest.fixture(scope="module")
def kit(bundled) -> GrammarKit:
    return GrammarKit(bundled)


def sample() -> list[dict]:
    firsts = {name: function for function in reversed(functions()) for name in type_names(function["parameters"])}
    return [*functions()[::STEP], *firsts.values()]


def in_other_words(node, names: dict[str, str]):
    """The schema with other names for its types."""
    if isinstance(node, list):
        return [in_other_words(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: in_other_words(value, names) for key, value in node.items()}
    if isinstance(made.get("type"), str):
        made["type"] = names.get(made["type"], made["type"])
    return made


def refused(kit: GrammarKit, chosen: list[dict]) -> dict[str, object]:
    """What is left open of each function, or its error, under each way to offer tools; empty when all are enforced."""
    found: dict[str, object] = {}
    for function in chosen:
        tools = (tool(function["name"], function["parameters"]),)
        for choice in ("required", "auto"):
            try:
                prepared = kit.prepare(Wanted(tools=tools, tool_choice=choice))
            except Exception as error:  # noqa: BLE001 - counted, so that one bad schema does not hide the others
                found[f"{function['name']} {choice}"] = error
                continue
            if prepared is None or prepared.grammar is None or prepared.unenforced:
                found[f"{function['name']} {choice}"] = prepared and prepared.unenforced
    return found


def test_each_type_name_of_the_catalogues_is_known():
    names = {name for function in functions() for name in type_names(function["parameters"])}
    assert len(names) > 3
    assert {name for name in names if json_type(name) is None} <= OPEN_NAMES


@pytest.mark.parametrize("words", [{}, {"dict": "HashMap", "integer": "Long", "array": "ArrayList", "float": "double"}])
@pytest.mark.parametrize("chosen", ["sample", pytest.param("all", marks=pytest.mark.soak)])
def test_no_tool_of_the_catalogues_is_refused_for_its_types(kit, chosen, words):
    taken = sample() if chosen == "sample" else functions()
    assert taken
    assert refused(kit, [in_other_words(function, words) for function in taken]) == {}


@pytest.mark.parametrize("chosen", ["sample", pytest.param("all", marks=pytest.mark.soak)])
def test_calls_of_catalogue_tools_come_out_whole_at_the_smallest_limit(kit, chosen):
    for function in sample() if chosen == "sample" else functions():
        wanted = Wanted(tools=(tool(function["name"], function["parameters"]),), tool_choice="required", many=False)
        text = kit.answer(wanted, len(kit.prepare(wanted).grammar.shortest))
        call = json.loads(text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>"))
        required = function["parameters"].get("required", [])
        assert call["name"] == function["name"] and set(required) <= set(call["arguments"]), text
