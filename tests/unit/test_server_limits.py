"""What a request costs is bounded before it is paid: sizes of JSON and fields, memory, connections, time to send.

The class of inputs: anything whose size, depth, number or pace a client chooses.
"""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kvlab.errors import KvlabError
from kvlab.server import Settings, limits
from kvlab.server.anthropic.types import MessagesRequest
from kvlab.server.body_parsing import parse_body
from kvlab.server.body_reader import BodyMemory, BodyReader
from kvlab.server.errors import ApiError
from kvlab.server.json_body import CHUNK_BYTES, JsonScan, parse_json
from kvlab.server.openai.parse import count_prompts
from kvlab.server.openai.types import ChatRequest, CompletionRequest
from kvlab.server.recent_answers import ENTRY_BYTES, RecentAnswers
from tests.processes import ROOT

# -- JSON -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from('a"\\[]{},:é\n1'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**90), 2**90) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def count(value: object) -> int:
    """Separators and opening brackets of a value in JSON."""
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + len(value) + max(0, len(value) - 1) + sum(map(count, value.values()))
    return 0


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES, st.integers(1, 9), st.booleans())
def test_scan_measures_any_json_in_any_chunks(value, size, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    scan = JsonScan()
    for start in range(0, len(text), size):
        scan.add(text[start : start + size])
    assert (scan.depth, scan.values) == (depth(value), count(value))
    assert parse_json(text) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(body):
    try:
        parse_json(body)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
        b'{"ignored": ' + b"[" * 129 + b"]" * 129 + b"}",
        b"[" + b"[{}," * 200 + b"1",
        b" " * (CHUNK_BYTES - 1) + b'{"x":' * 200,
    ],
)
def test_deep_json_is_refused_before_it_is_parsed(body):
    with pytest.raises(ApiError, match="nested too deeply: at most 128 levels"):
        parse_json(body)


@pytest.mark.parametrize(
    "body", [b"[" + b"1," * 200_001 + b"1]", b"[" + b"{}," * 150_000 + b"1]", b'{"a":1}' * 200_000]
)
def test_json_of_too_many_values_is_refused_before_it_is_parsed(body):
    with pytest.raises(ApiError, match="too many values: at most 200000"):
        parse_json(body)


def test_brackets_and_separators_inside_strings_cost_nothing():
    text = '[{,:\\"' * 300_000
    assert parse_json(json.dumps([text]).encode()) == [text]


def test_long_integers_stay_exact_unless_reading_them_is_slow():
    assert parse_json(b'{"n": 123456789012345678901234567890}') == {"n": 123456789012345678901234567890}
    with pytest.raises(ApiError, match="integers of more than 18 digits"):
        parse_json(b'{"n": 1234567890123456789, "t": "' + b"\\n" * 200_000 + b'"}')
    for text in (b"9" * 5000, b"NaN", b"[1e999]", b'"\\ud800"', b'"\xff"', b"", b"{", b"\xef\xbb\xbf{}"):
        with pytest.raises(ApiError, match="not valid JSON"):
            parse_json(text)


# -- fields ---------------------------------------------------------------------------------------------------------

CHAT = {"messages": [{"role": "user", "content": "x"}]}
MANY = 200_000


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (ChatRequest, CHAT | {"stop": ["x" * 1001]}, "stop"),
        (ChatRequest, CHAT | {"stop": "x" * 1_000_000}, "stop"),
        (ChatRequest, CHAT | {"stop": ["x"] * 17}, "stop"),
        (ChatRequest, CHAT | {"stop": [1] * MANY}, "stop"),
        (CompletionRequest, {"prompt": "x", "stop": ["x" * 1001]}, "stop"),
        (ChatRequest, CHAT | {"logit_bias": {str(i): "x" for i in range(MANY)}}, "logit_bias"),
        (ChatRequest, CHAT | {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        (ChatRequest, CHAT | {"n": 17}, "n"),
        (ChatRequest, CHAT | {"model": "m" * 257}, "model"),
        (ChatRequest, CHAT | {"top_logprobs": 21}, "top_logprobs"),
        (ChatRequest, {"messages": [0] * MANY}, "messages"),
        (ChatRequest, {"messages": [CHAT["messages"][0]] * 10_001}, "messages"),
        (ChatRequest, {"messages": [{"role": "user", "content": [0] * MANY}]}, "content"),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 10_001}]}, "content"),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", "name": "n" * 257}]}, "name"),
        (ChatRequest, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "i" * 257}]}, "tool_call_id"),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * 1025}]}, "tool_calls"),
        (ChatRequest, CHAT | {"tools": [{"function": {"name": ""}}] * MANY}, "tools"),
        (ChatRequest, CHAT | {"tools": [{"function": {"name": "f", "description": "d" * 100_001}}]}, "description"),
        (ChatRequest, CHAT | {"tool_choice": "f" * 257}, "tool_choice"),
        (ChatRequest, CHAT | {"chat_template_kwargs": {str(i): 1 for i in range(65)}}, "chat_template_kwargs"),
        (ChatRequest, CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "s" * 257}}}, "name"),
        (CompletionRequest, {"prompt": [None] * MANY}, "prompt"),
        (CompletionRequest, {"prompt": [1] * MANY + ["x"]}, "prompt"),
        (CompletionRequest, {"prompt": [[None] * MANY]}, "prompt"),
        (CompletionRequest, {"prompt": ["x"] * 257}, "prompt"),
        (CompletionRequest, {"prompt": [[1]] * 257}, "prompt"),
        (MessagesRequest, CHAT | {"max_tokens": 1, "stop_sequences": ["x" * 1001]}, "stop_sequences"),
        (MessagesRequest, CHAT | {"max_tokens": 1, "stop_sequences": ["x"] * 17}, "stop_sequences"),
        (MessagesRequest, {"max_tokens": 1, "messages": [0] * MANY}, "messages"),
        (MessagesRequest, CHAT | {"max_tokens": 1, "system": [0] * MANY}, "system"),
        (MessagesRequest, CHAT | {"max_tokens": 1, "tools": [{"name": ""}] * MANY}, "tools"),
        (MessagesRequest, CHAT | {"max_tokens": 1, "tools": [{"name": "t", "description": "d" * 100_001}]}, "descr"),
    ],
)
def test_fields_of_any_size_are_refused_with_few_errors(model, fields, words):
    """One error for each item of a long list would take seconds to write."""
    with pytest.raises(ValidationError) as error:
        model.model_validate(fields)
    assert error.value.error_count() <= 17
    assert words in str(error.value)


def test_refusals_name_the_field():
    body = json.dumps(CHAT | {"stop": ["x" * 2000]}).encode()
    with pytest.raises(ApiError, match="stop.*at most 1000 characters") as error:
        parse_body(ChatRequest, body)
    assert error.value.status == 400
    with pytest.raises(ApiError, match="must be a JSON object"):
        parse_body(ChatRequest, b"[]")


def test_errors_quote_no_more_than_a_page():
    error = ApiError(400, "no tool " + "x" * 1_000_000, param="logit_bias." + "1" * 1_000_000)
    assert len(error.message) == limits.MAX_ERROR_CHARS
    assert len(json.dumps(error.body("/v1/messages"))) < 3_000
    assert len(json.dumps(error.body("/v1/chat/completions"))) < 3_000


def test_fields_that_are_ignored_may_have_any_value():
    ignored = {"user": "u" * 100_000, "metadata": {str(i): "x" for i in range(1000)}, "service_tier": [1] * 1000}
    assert parse_body(ChatRequest, json.dumps(CHAT | ignored).encode()).n is None


@pytest.mark.parametrize(
    ("prompt", "number"), [("", 1), ("x", 1), ([], 1), ([1, 2], 1), ([[1], [2]], 2), (["a", "b", "c"], 3)]
)
def test_prompts_are_counted_before_they_are_encoded(prompt, number):
    assert count_prompts(prompt) == number


# -- bodies in memory -----------------------------------------------------------------------------------------------


def test_large_bodies_share_a_memory_and_small_ones_do_not_count():
    memory = BodyMemory(1_000_000)
    with memory.reservation() as one, memory.reservation() as other, memory.reservation() as small:
        one.grow_to(500_000)
        one.grow_to(700_000)
        assert memory.used == 700_000
        with pytest.raises(ApiError, match="no more fit") as error:
            other.grow_to(400_000)
        assert (error.value.status, error.value.headers) == (429, {"retry-after": "1"})
        small.grow_to(limits.MAX_SMALL_BODY_BYTES)
        other.grow_to(300_000)
    assert memory.used == 0


class Arriving:
    """A request whose body arrives as the test says."""

    def __init__(self, path: str = "/v1/chat/completions", **headers: str) -> None:
        from starlette.requests import Request

        names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": names,
            "query_string": b"",
            "server": ("x", 1),
        }
        self.request = Request(scope)
        self.messages: asyncio.Queue[dict] = asyncio.Queue()

    def send(self, body: bytes, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def read(self, reader: BodyReader) -> bytes:
        with reader.memory.reservation() as reservation:
            return await reader.read(self.request, self.messages.get, reservation)


def test_incomplete_bodies_make_room_for_others():
    """Clients that send a part and wait must not keep others' large requests out."""

    async def run() -> None:
        reader = BodyReader(Settings(max_body=1_000_000, body_memory=1_000_000))
        slow = [Arriving() for _ in range(3)]
        tasks = [asyncio.create_task(one.read(reader)) for one in slow]
        for one in slow:
            one.send(b"x" * 300_000)
        await asyncio.sleep(0.01)
        assert reader.memory.used == 900_000
        whole = Arriving()
        whole.send(b"y" * 300_000, more=False)
        assert await whole.read(reader) == b"y" * 300_000
        with pytest.raises(ApiError, match="too long") as error:
            await tasks[0]
        assert error.value.status == 408
        for one in slow[1:]:
            one.send(b"", more=False)
        assert [len(body) for body in await asyncio.gather(*tasks[1:])] == [300_000] * 2
        assert reader.memory.used == 0

    asyncio.run(run())


def test_bodies_end_in_time_and_at_shutdown():
    async def run() -> None:
        reader = BodyReader(Settings(body_seconds=0.05))
        with pytest.raises(ApiError, match="too long"):
            await Arriving().read(reader)
        patient = BodyReader(Settings(body_seconds=1000))
        task = asyncio.create_task(Arriving().read(patient))
        await asyncio.sleep(0.01)
        patient.close()
        with pytest.raises(ApiError, match="too long"):
            await task

    asyncio.run(run())


@pytest.mark.parametrize("length", ["9" * 5000, "8000001", "-1", "x", "٣", "1_0"])
def test_declared_lengths_are_checked_before_anything_is_read(length):
    async def run() -> None:
        with pytest.raises(ApiError) as error:
            await Arriving(content_length=length.encode().decode("latin-1")).read(BodyReader(Settings()))
        assert error.value.status == 413

    asyncio.run(run())


def test_paths_without_a_prompt_take_small_bodies_only():
    async def run() -> None:
        arriving = Arriving("/slots/0")
        arriving.send(b"x" * 70_000, more=False)
        with pytest.raises(ApiError, match="larger than 65536"):
            await arriving.read(BodyReader(Settings()))

    asyncio.run(run())


def test_settings_keep_limits_consistent():
    with pytest.raises(KvlabError, match="body_memory"):
        Settings(max_body=200_000_000)
    for name in ("header_seconds", "send_seconds", "max_connections", "body_memory"):
        with pytest.raises(KvlabError, match=name):
            Settings(**{name: 0})


def test_documentation_names_every_limit():
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    numbers = {name: value for name, value in vars(limits).items() if name.isupper()}
    undocumented = {"MAX_ERROR_CHARS", "MAX_LOGGED_CHARS", "MAX_UNSENT_EVENTS"}  # no client is refused for these
    for name, value in numbers.items():
        shown = f"{value // 1_000_000} MB" if value >= 1_000_000 else f"{value:,}"
        assert name in undocumented or shown in text, (name, shown)
    defaults = Settings()
    assert f"{defaults.max_body // 10**6} MB" in text
    assert f"{defaults.body_memory // 10**6} MB" in text
    assert f"`--max-connections`, {defaults.max_connections}," in text


# -- memories -------------------------------------------------------------------------------------------------------


def test_recent_answers_stay_within_their_bytes():
    recent = RecentAnswers(100_000)
    for number in range(200):
        recent.add(f"a{number}", "m", range(1000), "t")
        assert recent.nbytes <= recent.limit
    assert recent.find("a199", "t") == ("m", list(range(1000)))
    assert recent.find("a0", "t") is None
    recent.add("huge", "m", range(1_000_000), "t")
    assert recent.find("huge", "t") is None
    assert recent.find("0", "t") == ("m", list(range(1000)))


def test_recent_answers_of_few_tokens_count_their_objects():
    recent = RecentAnswers(100 * ENTRY_BYTES)
    for number in range(1000):
        recent.add(f"a{number}", "m", [1], "t")
    held = sum(recent.find(f"a{number}", "t") is not None for number in range(1000))
    assert 0 < held < 100


def test_recent_answers_belong_to_their_tenant():
    recent = RecentAnswers()
    recent.add("mine", "m", [1, 2], "a")
    recent.add("yours", "m", [3], "b")
    assert recent.find("0", "a") == ("m", [1, 2])
    assert recent.find("mine", "b") is None
    assert recent.find("0", "c") is None
    recent.add("mine", "m", [1, 2, 3], "a")
    assert recent.find("mine", "a") == ("m", [1, 2, 3])
    assert recent.nbytes == 16 + 2 * ENTRY_BYTES
