"""Calls required of random weights: kinds of schemas, and all of the Berkeley Function Calling Leaderboard."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import openai
import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.models import bundled_path, load
from kvlab.server import serve
from tests.catalogue import functions, needs_catalogue
from tests.helpers import random_model_folder

PARTS = 6
TYPES = {"dict": "object", "float": "number", "tuple": "array"}

POINT = {"type": "dict", "properties": {"x": {"type": "float"}, "y": {"type": "float"}}, "required": ["x", "y"]}
KINDS = [
    {"type": "dict", "properties": {}},
    {"type": "dict", "properties": {"a": {"type": "string", "description": "no more"}}, "required": []},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 9}}, "required": ["n"]},
    {"type": "dict", "properties": {"u": {"type": "string", "enum": ["km/h", 'm"s', "ü"]}}, "required": ["u"]},
    {"type": "dict", "properties": {"path": {"type": "array", "items": POINT}, "end": POINT}, "required": ["path"]},
    {"type": "dict", "properties": {"t": {"type": "tuple", "items": {"type": "integer"}}}, "required": ["t"]},
    {"type": "dict", "properties": {"v": {"type": "any"}, "b": {"type": "boolean"}}, "required": ["v", "b"]},
    {"type": "object", "properties": {"x": {"type": ["integer", "null"]}, "y": {"const": 5}}, "required": ["x", "y"]},
    {"type": "object", "properties": {"x": {"anyOf": [{"type": "number"}, {"type": "string"}]}}, "required": ["x"]},
    {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}},
        "required": ["tree"],
        "$defs": {
            "node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "v": {"type": "string"}}}
        },
    },
]
"""One schema for each thing that catalogues do with them."""


def as_json_schema(part):
    """The catalogue's own type names as JSON Schema's, and nothing else."""
    if isinstance(part, list):
        return [as_json_schema(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: as_json_schema(value) for key, value in part.items()}
    if made.get("type") == "any":
        del made["type"]
    elif isinstance(made.get("type"), str):
        made["type"] = TYPES.get(made["type"], made["type"])
    return made


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Random weights under the bundled model's tokenizer and template."""
    folder = random_model_folder("llama", tmp_path_factory.mktemp("random"), vocab_size=2304, eos_token_id=2297)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled_path() / name, folder / name)
    with serve("paged", load(folder)) as handle:
        yield openai.OpenAI(base_url=f"{handle.url}/v1", api_key="-", max_retries=0, timeout=600)


def called(client: openai.OpenAI, function: dict, *, stream: bool, **options) -> list[tuple[str, str]]:
    """The calls of one answer, as name and arguments."""
    made = client.chat.completions.create(
        model="",
        messages=[{"role": "user", "content": "Go."}],
        tools=[{"type": "function", "function": function}],
        tool_choice="required",
        stream=stream,
        **options,
    )
    if not stream:
        [choice] = made.choices
        assert choice.finish_reason == "tool_calls", choice
        return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    calls: dict[int, list[str]] = {}
    for chunk in made:
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, ["", ""])
            call[0] += part.function.name or ""
            call[1] += part.function.arguments or ""
    return [(name, arguments) for name, arguments in calls.values()]


def problem(client: openai.OpenAI, function: dict, seed: int, stream: bool, length: int = 200) -> str:
    """What is wrong with the calls of one answer; empty when all are valid."""
    # Greedy, and hot: random weights under either say anything that is not forbidden.
    options = {"max_tokens": length, "temperature": 1.5 * (seed % 2), "seed": seed}
    try:
        calls = called(client, function, stream=stream, **options)
        assert calls
        for name, arguments in calls:
            assert name == function["name"]
            jsonschema.validate(json.loads(arguments), as_json_schema(function["parameters"]))
    except Exception as error:  # noqa: BLE001 - counted, so that one bad schema does not hide the others
        return f"{function['name']} (stream={stream}): {type(error).__name__} {error}"
    return ""


def check(client: openai.OpenAI, chosen: list[dict], said: str) -> None:
    """Every function, streamed and not; prints how far it has come."""
    jobs = [(function, seed, stream) for seed, function in enumerate(chosen) for stream in (False, True)]
    bad: list[str] = []
    with ThreadPoolExecutor(32) as threads:
        for done, found in enumerate(threads.map(lambda job: problem(client, *job), jobs), 1):
            bad += [found] if found else []
            if done % 20 == 0 or done == len(jobs):
                print(f"{said}: {done - len(bad)} of {done} valid, {len(jobs) - done} to go", flush=True)
    assert not bad, f"{len(bad)} of {len(jobs)}: " + "\n".join(bad[:10])


def test_required_calls_are_valid_under_every_kind_of_schema(client):
    check(client, [{"name": f"tool_{i}", "parameters": schema} for i, schema in enumerate(KINDS)], "kinds")


def test_lists_of_objects_end_within_any_length(client):
    text = {"type": "string"}
    item = {"type": "object", "properties": {name: text for name in ("field", "operation", "value")}}
    item["required"] = list(item["properties"])
    schema = {"type": "object", "properties": {"conditions": {"type": "array", "items": item}}}
    function = {"name": "database.query", "parameters": schema | {"required": ["conditions"]}}
    jobs = [(function, seed, False, 40 + 10 * seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as threads:
        bad = [found for found in threads.map(lambda job: problem(client, *job), jobs) if found]
    assert not bad, f"{len(bad)} of {len(jobs)}: " + "\n".join(bad[:10])


@pytest.mark.soak
@needs_catalogue
@pytest.mark.parametrize("part", range(PARTS))
def test_required_calls_of_the_whole_catalogue_are_valid(client, part):
    check(client, functions()[part::PARTS], f"part {part + 1} of {PARTS}")
