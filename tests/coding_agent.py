"""A coding agent's client in the shape that Claude Code has, on both protocols, without any SDK between.

What it does to a prompt cache, and real agents do: a billing line that changes with every request begins the system
prompt; ``cache_control`` sits on other blocks each turn, and a message is a list of blocks at first and a string
later; the session was resumed, with thinking in its history; tool results hold images; reminders come late, in the
user's turn and as system messages; tokens are counted, and small requests of other kinds are sent in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

Message = dict[str, Any]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""
REMINDER = "<system-reminder>The list of open tasks is empty. Do not mention this to the user.</system-reminder>"
LATE_SYSTEM = "The user has switched to another window. Keep your answers short."
IMAGE_TURNS, REMINDER_TURN, SYSTEM_TURN = (2, 5, 8, 11), 6, 9
CACHE = {"cache_control": {"type": "ephemeral"}}


class Refused(AssertionError):
    """The server answered with another status than 200."""

    def __init__(self, path: str, status: int, said: str) -> None:
        super().__init__(f"{path}: {status} {said}")
        self.status = status


@dataclass(frozen=True)
class Turn:
    """What the server said of one request.

    ``answer``: generated tokens. ``miss``: why it had to compute others. ``counted``: what it said when asked before
    how many tokens the prompt has; None when it was not asked.
    """

    number: int
    prompt: int
    cached: int
    answer: int
    miss: str
    calls: int
    counted: int | None = None


@dataclass
class Session:
    """The conversation, in Anthropic's blocks, whatever protocol it is sent in."""

    rules: Sequence[str]
    tools: Sequence[Message]
    questions: Iterator[str]
    result: Callable[[str, Message], str]
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def resume(self, call: Message) -> None:
        """Begin with a history from an earlier session, whose answers hold thinking."""
        use = {"type": "tool_use", "id": "toolu_01A09q90qw90lq917835lq9", **call}
        self._add("user", [text(next(self.questions))])
        self._add("assistant", [thinking("The user wants a record. I have to look it up first."), use])
        self._add("user", [tool_result(use["id"], [text(self.result(call["name"], call["input"]))])])
        self._add("assistant", [thinking("The record is there."), text("Here is the record.")])
        self.ask()

    def ask(self) -> None:
        """Add the user's next words."""
        number = len(self.turns) + 1
        blocks = [text(next(self.questions))]
        if number >= REMINDER_TURN and not self._has(REMINDER):
            blocks.insert(0, text(REMINDER))
        self._add("user", blocks)

    def go_on(self, answer: list[Message], turn: Turn) -> None:
        """Add the model's answer, and what follows on it: results of its calls, or the user's next words."""
        self.turns.append(turn)
        self._add("assistant", answer)
        calls = [block for block in answer if block["type"] == "tool_use"]
        results = []
        for call in calls:
            parts = [text(self.result(call["name"], call["input"]))]
            if turn.number in IMAGE_TURNS:
                source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
                parts.append({"type": "image", "source": source})
            results.append(tool_result(call["id"], parts))
        if results:
            self._add("user", results)
        else:
            self.ask()
        if turn.number == SYSTEM_TURN:
            self._add("system", [text(LATE_SYSTEM)])

    def _add(self, role: str, content: list[Message]) -> None:
        self.messages.append({"role": role, "content": content})

    def _has(self, words: str) -> bool:
        return any(block.get("text") == words for message in self.messages for block in message["content"])


def text(words: str) -> Message:
    return {"type": "text", "text": words}


def thinking(words: str) -> Message:
    return {"type": "thinking", "thinking": words, "signature": "EqQBCkYIARgCKkAxx"}


def tool_result(call: str, parts: list[Message]) -> Message:
    return {"type": "tool_result", "tool_use_id": call, "content": parts}


def billing(number: int) -> str:
    """A line that differs in every request."""
    return (
        f"x-anthropic-billing-header: cc_version=2.0.{number}.{Random(number).randrange(16**3):03x}; cc_entrypoint=cli;"
    )


class Client:
    """Sends a session, one turn at a time.

    Args:
        session: what is said; it grows with every turn.
        max_tokens: most tokens of an answer.
        force_calls: every second answer must be a call, for models that make none by themselves.
        key: the API key.
    """

    def __init__(self, session: Session, *, max_tokens: int = 48, force_calls: bool = False, key: str = "-") -> None:
        self.session, self._max_tokens, self._force_calls = session, max_tokens, force_calls
        # One client for all turns: a new one reads the machine's certificates each time, which takes long.
        self._http = httpx.Client(timeout=120, headers={"x-kvlab": "1", "authorization": f"Bearer {key}"})

    def turn(self, url: str) -> Turn:
        """Ask for an answer, and add it to the session. Raises Refused, or an error of httpx."""
        raise NotImplementedError

    @property
    def _is_forced(self) -> bool:
        return self._force_calls and len(self.session.turns) % 2 == 0

    def _post(self, url: str, body: Any) -> Any:
        made = self._http.post(url, json=body)
        if made.status_code != 200:
            raise Refused(url, made.status_code, made.text[:500])
        return made.json()

    def _events(self, url: str, body: Any) -> Iterator[Any]:
        with self._http.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                raise Refused(url, response.status_code, response.read().decode()[:500])
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])


class Claude(Client):
    """Sends messages as Claude Code does: streamed, their tokens counted before."""

    def body(self) -> dict[str, Any]:
        session, number = self.session, len(self.session.turns) + 1
        system = [text(billing(number)), *(text(rule) | CACHE for rule in session.rules)]
        tools = [
            {"name": f["name"], "description": f["description"], "input_schema": f["parameters"]}
            for f in (tool["function"] for tool in session.tools)
        ]
        return {
            "model": "claude-sonnet-4-5",
            "system": system,
            "messages": [_spelled(m, last=i >= len(session.messages) - 2) for i, m in enumerate(session.messages)],
            "tools": tools,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "metadata": {"user_id": f"user_{'0' * 64}_account__session_{number}"},
        }

    def turn(self, url: str) -> Turn:
        """Count the tokens, ask for an answer, and add it to the session."""
        number, body = len(self.session.turns) + 1, self.body()
        counted = self._post(url + "/v1/messages/count_tokens", body)["input_tokens"]
        blocks, usage, miss = self._stream(url, {**body, **self._options(), "stream": True})
        cached = usage["cache_read_input_tokens"]
        prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached
        calls = sum(block["type"] == "tool_use" for block in blocks)
        made = Turn(number, prompt, cached, usage["output_tokens"], miss, calls, counted)
        self.session.go_on(blocks, made)
        self._other_requests(url, number)
        return made

    def _options(self) -> dict[str, Any]:
        return {"max_tokens": self._max_tokens} | ({"tool_choice": {"type": "any"}} if self._is_forced else {})

    def _stream(self, url: str, body: Any) -> tuple[list[Message], dict[str, Any], str]:
        blocks: list[Message] = []
        usage: dict[str, Any] = {}
        miss = ""
        arguments: dict[int, str] = {}
        for event in self._events(url + "/v1/messages", body):
            if event["type"] == "content_block_start":
                blocks.append(dict(event["content_block"]))
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "input_json_delta":
                    arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
                elif delta["type"] in ("text_delta", "thinking_delta"):
                    name = delta["type"].removesuffix("_delta")
                    blocks[event["index"]][name] += delta[name]
            elif event["type"] == "message_delta":
                usage, miss = event["usage"], event.get("kvlab", {}).get("miss", "")
            elif event["type"] == "error":
                raise Refused("/v1/messages", 200, str(event))
        for index, written in arguments.items():
            blocks[index]["input"] = json.loads(written)
        return blocks, usage, miss

    def _other_requests(self, url: str, number: int) -> None:
        if number % 3 == 0:
            words = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "quota"}]}
            self._post(url + "/v1/messages", {**words, "max_tokens": 1})
            self._post(url + "/v1/messages/count_tokens", {**words, "tools": self.body()["tools"][:1]})


class Proxy(Client):
    """Sends what proxies from Claude Code to OpenAI's protocol send, not streamed."""

    def body(self) -> dict[str, Any]:
        session, number = self.session, len(self.session.turns) + 1
        system = "\n".join([billing(number), *session.rules])
        messages: list[Message] = [{"role": "system", "content": system}]
        for i, message in enumerate(session.messages):
            messages += _for_openai(message, last=i >= len(session.messages) - 2)
        return {"model": "claude-sonnet-4-5", "messages": messages, "tools": list(session.tools)}

    def turn(self, url: str) -> Turn:
        number, body = len(self.session.turns) + 1, self.body()
        choice = "required" if self._is_forced else "auto"
        options = {"max_tokens": self._max_tokens, "tool_choice": choice}
        made = self._post(url + "/v1/chat/completions", body | options)
        message, usage = made["choices"][0]["message"], made["usage"]
        blocks = []
        if message.get("reasoning_content"):
            blocks.append(thinking(message["reasoning_content"]))
        if message.get("content"):
            blocks.append(text(message["content"]))
        for call in message.get("tool_calls") or []:
            function = call["function"]
            given = json.loads(function["arguments"])
            blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": given})
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        calls = len(message.get("tool_calls") or [])
        miss = made["kvlab"]["miss"]
        turn = Turn(number, usage["prompt_tokens"], cached, usage["completion_tokens"], miss, calls)
        self.session.go_on(blocks or [text("")], turn)
        if number % 3 == 0:
            quota = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "quota"}], "max_tokens": 1}
            self._post(url + "/v1/chat/completions", quota)
        return turn


def _spelled(message: Message, *, last: bool) -> Message:
    """A message as this turn's request has it: the last two with cache_control, an older one of one text as string."""
    content = message["content"]
    if last:
        return {**message, "content": [*content[:-1], content[-1] | CACHE]}
    if len(content) == 1 and content[0]["type"] == "text":
        return {**message, "content": content[0]["text"]}
    return message


def _for_openai(message: Message, *, last: bool) -> list[Message]:
    blocks = message["content"]
    made: list[Message] = []
    for block in blocks:
        if block["type"] == "tool_result":
            parts = [
                part if part["type"] == "text" else
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{part['source']['data']}"}}
                for part in block["content"]
            ]  # fmt: skip
            content = parts if len(parts) > 1 else parts[0]["text"]
            made.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": content})
    texts = [block for block in blocks if block["type"] == "text"]
    calls = [block for block in blocks if block["type"] == "tool_use"]
    if not texts and not calls:
        return made
    joined = "".join(block["text"] for block in texts)
    turn: Message = {"role": message["role"], "content": texts if last or len(texts) > 1 else joined}
    if message["role"] == "assistant":
        turn["content"] = joined or None
        thoughts = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        if thoughts:
            turn["reasoning_content"] = thoughts
        if calls:
            turn["tool_calls"] = [
                {"id": call["id"], "type": "function",
                 "function": {"name": call["name"], "arguments": json.dumps(call["input"])}}
                for call in calls
            ]  # fmt: skip
    return [*made, turn]
