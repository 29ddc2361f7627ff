"""A served policy and the clients that people use: openai, anthropic, and an agent's loop through them."""

import json
from collections.abc import Iterator

import anthropic
import openai
import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.server import Handle, serve
from kvlab.workloads.agent import Agent
from tests.server_kit import Served, chat

DETAILS = {"x-kvlab": "1"}


@pytest.fixture(scope="module")
def server(bundled) -> Iterator[Handle]:
    with serve("paged", bundled) as handle:
        yield handle


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def claude(server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="-", max_retries=0, timeout=60)


TURNS = Agent(turns=15).requests()


def ask(client: openai.OpenAI, messages, tools, **options):
    return client.chat.completions.create(model="tiny", messages=messages, tools=tools, max_tokens=48, **options)


def told(request) -> list[dict]:
    return [dict(message) for message in request.messages]


def agent_loop(client: openai.OpenAI, messages, tools, answer, *, stream: bool = False) -> str:
    """Ask until there is an answer in words; ``answer(name, arguments)`` is the tools' side. Messages grow."""
    for _ in range(4):
        if stream:
            content, calls = "", {}
            for chunk in ask(client, messages, tools, stream=True):
                for choice in chunk.choices:
                    content += choice.delta.content or ""
                    for part in choice.delta.tool_calls or []:
                        call = calls.setdefault(part.index, {"id": part.id, "name": "", "arguments": ""})
                        call["name"] += part.function.name or ""
                        call["arguments"] += part.function.arguments or ""
            said = list(calls.values())
        else:
            message = ask(client, messages, tools).choices[0].message
            content = message.content or ""
            said = [
                {"id": c.id, "name": c.function.name, "arguments": c.function.arguments}
                for c in message.tool_calls or []
            ]
        turn = {"role": "assistant", "content": content}
        if said:
            turn["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in said
            ]
        messages.append(turn)
        if not said:
            return content
        for call in said:
            result = answer(call["name"], json.loads(call["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    raise AssertionError("the loop did not end")


def results_by_request() -> dict[tuple[str, str], str]:
    """What the workload's tools answer, by tool and handle."""
    made = {}
    messages = TURNS[-1].messages
    for before, after in zip(messages, messages[1:], strict=False):
        if after["role"] == "tool":
            function = before["tool_calls"][0]["function"]
            made[function["name"], json.loads(function["arguments"])["handle"]] = after["content"]
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_lives_on_it_for_fifteen_turns(client, stream):
    results, messages, right, turns = results_by_request(), [], 0, 0
    users = [message for message in TURNS[-1].messages if message["role"] == "user"]
    finals = [r for r in TURNS if r.kind in ("answer", "recall")]
    messages.append(dict(TURNS[0].messages[0]))
    tools = list(TURNS[0].tools)
    for user, request in zip(users, finals, strict=True):
        messages.append(dict(user))
        answer = agent_loop(client, messages, tools, lambda name, given: results[name, given["handle"]], stream=stream)
        right += request.grade(answer)["accuracy"]
        turns += 1
    assert (right, turns) == (9, 9)
    assert sum(message["role"] == "assistant" for message in messages) == 15


def test_every_turn_starts_from_the_one_before(client):
    before = 0
    for request in TURNS[:6]:
        made = ask(client, told(request), list(request.tools), extra_headers=DETAILS)
        cached = made.usage.prompt_tokens_details.cached_tokens
        assert cached >= before
        before = made.usage.prompt_tokens
        assert made.model_extra["kvlab"]["policy"] == "paged"
        assert made.model_extra["kvlab"]["ttft_ms"] > 0


def test_a_changed_message_is_named(client):
    request = TURNS[8]
    ask(client, told(request), list(request.tools))
    messages = told(request)
    messages[5]["content"] = "Please find the badge of @nobody."
    made = ask(client, messages, list(request.tools), extra_headers=DETAILS)
    assert made.model_extra["kvlab"]["message"] == 5
    assert "in message 5" in made.model_extra["kvlab"]["miss"]


def test_choices_of_tools_are_kept(client):
    request, tools = TURNS[0], list(TURNS[0].tools)
    for choice, finish in (
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "set_desk"}}, "tool_calls"),
    ):
        made = ask(client, told(request), tools, tool_choice=choice).choices[0]
        assert made.finish_reason == finish
    assert made.message.tool_calls[0].function.name == "set_desk"
    made = ask(client, told(request), tools, tool_choice="none").choices[0]
    assert made.message.tool_calls is None
    assert made.finish_reason in ("stop", "length")
    made = ask(client, told(request), tools, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert len(made.message.tool_calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_json_is_json(client, stream):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
        "required": ["name", "age", "kind"],
    }
    for form in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}):
        made = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Who?"}],
            response_format=form,
            max_tokens=40,
            temperature=1.5,
            seed=4,
            stream=stream,
        )
        text = "".join(c.choices[0].delta.content or "" for c in made) if stream else made.choices[0].message.content
        value = json.loads(text)
        if form["type"] == "json_schema":
            assert set(value) == {"name", "age", "kind"}
            assert isinstance(value["age"], int)


def test_a_stream_says_what_a_whole_answer_says(client):
    options = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "n": 3}
    options |= {"temperature": 1.0, "seed": 11, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    texts, logprobs, usage = {}, {}, None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            logprobs.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
    assert [texts[i] for i in range(3)] == [choice.message.content for choice in whole.choices]
    assert len({*texts.values()}) > 1
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    for choice in whole.choices:
        assert len(logprobs[choice.index]) == len(choice.logprobs.content) <= 24
        assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_the_same_seed_is_the_same_answer_beside_others(client):
    options = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 16,
        "temperature": 1.2,
    }
    first = client.chat.completions.create(**options, seed=5, n=1).choices[0].message.content
    crowd = client.chat.completions.create(**options, seed=5, n=4).choices
    assert crowd[0].message.content == first
    assert client.chat.completions.create(**options, seed=6).choices[0].message.content != first


def test_plain_completions(client):
    made = client.completions.create(
        model="tiny", prompt=["The badge", "A desk"], max_tokens=5, n=2, logprobs=3, echo=False
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) <= 5 for choice in made.choices)
    echoed = client.completions.create(model="tiny", prompt="The badge", max_tokens=5, echo=True).choices[0].text
    assert echoed == "The badge" + made.choices[0].text
    stop = made.choices[0].text[3:5]
    stopped = client.completions.create(model="tiny", prompt="The badge", max_tokens=5, stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (made.choices[0].text.partition(stop)[0], "stop")
    parts = client.completions.create(model="tiny", prompt="The badge", max_tokens=5, stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices) == made.choices[0].text


def test_models_and_their_context(client):
    [model] = client.models.list().data
    assert (model.id, model.model_extra["context_window"]) == ("tiny", 32768)
    assert client.models.retrieve("tiny").id == "tiny"


def test_errors_are_clear_and_of_the_right_kind(client):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])
    for fields, words in (
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "role"),
        ({**chat("x"), "temperature": 9}, "temperature"),
        ({**chat("x"), "tool_choice": "required"}, "no tools"),
        ({**chat("x"), "logit_bias": {"99999": 1}}, "token ids"),
        ({**chat("word " * 40000)}, "context"),
        (
            {
                **chat("x"),
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "integer", "minimum": 5, "maximum": 3}},
                },
            },
            "response_format cannot be satisfied",
        ),
    ):
        with pytest.raises(openai.BadRequestError, match=words) as error:
            client.post("/chat/completions", body={"model": "tiny", **fields}, cast_to=object)
        assert error.value.type == "invalid_request_error"


# -- Anthropic ------------------------------------------------------------------------------------------------------


def claude_request(request) -> dict:
    tools = [
        {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
        for f in (tool["function"] for tool in request.tools)
    ]
    return {"model": "claude-anything", "system": request.messages[0]["content"], "tools": tools, "max_tokens": 48}


@pytest.mark.parametrize("stream", [False, True])
def test_claude_clients_call_tools(claude, stream):
    request = TURNS[0]
    options = claude_request(request)
    messages = [{"role": "user", "content": request.messages[1]["content"]}]
    counted = claude.messages.count_tokens(
        model="tiny", messages=messages, system=options["system"], tools=options["tools"]
    )

    def ask():
        if not stream:
            return claude.messages.create(messages=messages, **options)
        with claude.messages.stream(messages=messages, **options) as events:
            return events.get_final_message()

    made = ask()
    assert made.stop_reason == "tool_use"
    usage = made.usage
    assert (
        usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens == counted.input_tokens
    )
    [call] = [block for block in made.content if block.type == "tool_use"]
    assert {"name": call.name, "arguments": call.input} == {
        "name": request.reference["tool_calls"][0]["function"]["name"],
        "arguments": json.loads(request.reference["tool_calls"][0]["function"]["arguments"]),
    }
    content = TURNS[1].messages[-1]["content"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": content}]}]
    messages += [{"role": "assistant", "content": made.content}, {"role": "user", "content": results}]
    made = ask()
    assert TURNS[1].grade(made.content[0].text) == {"accuracy": 1.0}
    assert made.stop_reason == "end_turn"
    assert made.usage.cache_read_input_tokens >= counted.input_tokens


def test_claude_clients_get_their_errors(claude):
    with pytest.raises(anthropic.BadRequestError) as error:
        image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}]
        claude.messages.create(model="tiny", max_tokens=5, messages=[{"role": "user", "content": image}])
    assert "not supported" in error.value.message
    made = claude.messages.create(
        model="tiny", max_tokens=3, messages=[{"role": "user", "content": "hello"}], tool_choice={"type": "none"}
    )
    assert made.stop_reason == "max_tokens"


# -- a process, killed and started again --------------------------------------------------------------------------


@pytest.mark.soak  # test_server_agent has a kill for every run
def test_the_loop_goes_on_after_a_kill(tmp_path):
    policy = f"tiered:dir={tmp_path / 'store'},write=through"
    with Served("--policy", policy, home=tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=60)
        for request in TURNS[:7]:
            ask(client, told(request), list(request.tools))
        server.kill()
    with Served("--policy", policy, home=tmp_path) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=60)
        made = ask(client, told(TURNS[7]), list(TURNS[7].tools), extra_headers=DETAILS)
        usage = made.usage
        assert usage.prompt_tokens_details.cached_tokens >= 0.95 * usage.prompt_tokens
        assert set(made.model_extra["kvlab"]["cached_by_tier"]) == {"ssd"}
        right = 0.0
        for request in TURNS[7:]:
            message = ask(client, told(request), list(request.tools)).choices[0].message
            if request.kind == "call":
                wanted = request.reference["tool_calls"][0]["function"]
                [call] = message.tool_calls
                right += call.function.name == wanted["name"] and json.loads(call.function.arguments) == json.loads(
                    wanted["arguments"]
                )
            else:
                right += request.grade(message.content)["accuracy"]
        assert right == len(TURNS[7:])
