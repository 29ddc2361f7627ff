"""Every function schema of the Berkeley Function Calling Leaderboard, required of a model with random weights."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import openai
import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.models import bundled_path, load
from kvlab.server import serve
from tests.helpers import random_model_folder

pytestmark = pytest.mark.soak  # minutes of real processes and clients

CATALOGUE = Path(os.environ.get("KVLAB_BFCL") or Path(__file__).parents[3] / "shared" / "data" / "bfcl")
TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def functions() -> list[dict]:
    lines = [line for file in sorted(CATALOGUE.glob("*.json")) for line in file.read_text().splitlines()]
    return [function for line in lines for function in json.loads(line)["function"]]


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


@pytest.mark.skipif(not CATALOGUE.is_dir(), reason="the catalogue is not here; set KVLAB_BFCL to its folder")
@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.soak)])
def test_every_required_call_is_valid(client, every):
    jobs = [(i, function, stream) for i, function in enumerate(functions()[::every]) for stream in (False, True)]

    def check(job) -> str:
        i, function, stream = job
        # Greedy, and hot: random weights under either say anything that is not forbidden.
        options = {"max_tokens": 200, "temperature": 1.5 * (i % 2), "seed": i}
        try:
            calls = called(client, function, stream=stream, **options)
            assert calls
            for name, arguments in calls:
                assert name == function["name"]
                jsonschema.validate(json.loads(arguments), as_json_schema(function["parameters"]))
        except Exception as error:  # noqa: BLE001 - counted, so that one bad schema does not hide the others
            return f"{function['name']} (stream={stream}): {type(error).__name__} {error}"
        return ""

    with ThreadPoolExecutor(32) as threads:
        bad = [problem for problem in threads.map(check, jobs) if problem]
    print(f"{len(jobs) - len(bad)} of {len(jobs)} valid")
    assert not bad, f"{len(bad)} of {len(jobs)}: " + "\n".join(bad[:10])
