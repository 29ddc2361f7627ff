"""``Material``: the text of an audit's prompts, seeded, and never the same for two salts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from kvlab.workloads.words import filler

_SPEECH = 4
"""Characters of the hash that opens a text, in words, so that two texts differ at once."""


class Material:
    """Makes texts, tools and ids of about n tokens.

    The same salt and label give the same text; another salt another text from its first word on, so that a probe
    starts cold on a server that has been used before.

    Args:
        salt: Of one audit.
        tokens_per_word: Of the server's tokenizer, as the audit has measured it.
    """

    def __init__(self, salt: str, tokens_per_word: float = 1.3) -> None:
        self.salt, self.tokens_per_word = salt, tokens_per_word

    def text(self, label: str, tokens: int) -> str:
        """Return sentences of about ``tokens`` tokens, different for every label."""
        rng = Random(f"{self.salt}/{label}")
        words = max(1, round(tokens / self.tokens_per_word))
        found: list[str] = self._opening(label).split()
        while len(found) < words:
            found += filler(rng).split()
        return " ".join(found[:words])

    def _opening(self, label: str) -> str:
        """Return words that differ with the label, the first one already in most cases."""
        digest = hashlib.sha256(f"{self.salt}/{label}".encode()).digest()
        letters = "".join(chr(ord("a") + byte % 26) for byte in digest[: 2 * _SPEECH])
        return f"{letters[:_SPEECH].capitalize()} {letters[_SPEECH:]}."

    def tools(self, label: str, count: int, tokens: int) -> list[dict[str, Any]]:
        """Return ``count`` tool definitions with descriptions of about ``tokens`` tokens each."""
        return [self._tool(f"{label}/{number}", f"{label}_{number}", tokens) for number in range(count)]

    def _tool(self, label: str, name: str, tokens: int) -> dict[str, Any]:
        argument = {"type": "string", "description": "What to look up."}
        parameters = {"type": "object", "properties": {"query": argument}, "required": ["query"]}
        described = {"name": name, "description": self.text(label, tokens), "parameters": parameters}
        return {"type": "function", "function": described}


def system(content: str) -> dict[str, Any]:
    """Return a system message."""
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    """Return a user message."""
    return {"role": "user", "content": content}


def assistant(content: str, **fields: Any) -> dict[str, Any]:
    """Return an assistant message; ``fields`` such as ``tool_calls`` or ``reasoning_content`` are added."""
    return {"role": "assistant", "content": content, **fields}


def tool_turn(name: str, query: str, result: str, call_id: str) -> list[dict[str, Any]]:
    """Return an assistant's call of a tool and the tool's result."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps({"query": query})}}
    return [
        assistant("", tool_calls=[call]),
        {"role": "tool", "tool_call_id": call_id, "name": name, "content": result},
    ]


def as_plain_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with calls and results of tools as text, for templates that take no ``tool`` message."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            plain.append(user(f"Result: {message['content']}"))
        elif calls := message.get("tool_calls"):
            named = " ".join(f"{call['function']['name']} {call['function']['arguments']}" for call in calls)
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            plain.append(kept | {"content": f"{message['content']} Call: {named}".strip()})
        else:
            plain.append(dict(message))
    return plain


def count_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Return the words of a prompt: its size where a server counts no tokens."""
    return len(_rendered(messages, tools).split())


def shared_part(
    messages: Sequence[Mapping[str, Any]],
    earlier: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    earlier_tools: Sequence[Mapping[str, Any]] = (),
) -> float:
    """Return the part of a prompt, from 0 to 1, that an earlier prompt begins with as well, by characters.

    The template and the tokenizer are the server's own and unknown here, so it is right to a few percent.
    """
    text, other = _rendered(messages, tools), _rendered(earlier, earlier_tools)
    same = next((i for i, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), None)
    return (min(len(text), len(other)) if same is None else same) / max(1, len(text))


def _rendered(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """Return a prompt about as a template writes it, tools first."""
    parts = [json.dumps(tool) for tool in tools]
    for message in messages:
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls") or ()]
        texts = [str(message.get(key) or "") for key in ("reasoning_content", "content")]
        parts.append(" ".join(["<start> " + message["role"], *filter(None, texts), *calls, "<end>"]))
    return "\n".join(parts)
