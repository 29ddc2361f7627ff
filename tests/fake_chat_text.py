"""What a fake server says, and what it does wrong; see :mod:`tests.fake_chat_server`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "nü", "你好", "🙂")


@dataclass(frozen=True)
class Faults:
    """What the server does wrong; nothing without arguments.

    ``tie``: a cached answer differs at its last token, where two tokens are equally good. ``unsteady``: every other
    answer to one prompt differs. ``slots``: so many requests at a time. ``restarts_at``: while this file exists, the
    next request finds a restarted server, and the file is gone.
    """

    cached_text_differs: bool = False
    tie: bool = False
    unsteady: bool = False
    claims_without_speed: bool = False
    dies_after_exact_hit: bool = False
    cuts_prompts: bool = False
    vague_errors: bool = False
    breaks_on_long_prompts: bool = False
    slides: bool = False
    pretends: bool = False
    refuses_long_answers: bool = False
    slots: int = 1000
    refuses_beyond: int = 1000
    goes_on_after_abort: bool = False
    loses_aborted: bool = False
    no_done: bool = False
    bad_line: bool = False
    role_in_each_delta: bool = False
    no_finish: bool = False
    no_usage: bool = False
    ignores_max_tokens: bool = False
    ignores_stop: bool = False
    splits_characters: bool = False
    stream_differs: bool = False
    malformed_arguments: bool = False
    arguments_as_object: bool = False
    unknown_tool: bool = False
    no_call_ids: bool = False
    stops_after_calls: bool = False
    never_calls: bool = False
    keeps_nothing: bool = False
    wrong_after_restart: bool = False
    never_comes_back: bool = False


def prompt_words(body: Mapping[str, Any]) -> list[str]:
    """Return a prompt's words: tools and messages with their roles, or plain text."""
    if "prompt" in body:
        return str(body["prompt"]).split()
    found = json.dumps(body.get("tools") or "").split()
    for message in body["messages"]:
        found += [f"<{message['role']}>", *str(message.get("content") or "").split(), "<end>"]
    return [*found, "<assistant>"]


def next_word(tokens: Sequence[str]) -> str:
    """Return the word that follows: it depends on all before it."""
    return WORDS[hashlib.sha256(" ".join(tokens).encode()).digest()[0] % len(WORDS)]


def common_words(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count


def pieces(text: str, *, split: bool) -> list[str]:
    """Return a text in one piece, or each of its characters of several bytes in two broken ones."""
    if not split or text.isascii():
        return [text]
    raw = text.encode()
    return [raw[:-1].decode(errors="replace"), raw[-1:].decode(errors="replace")]


def calls_of(body: Mapping[str, Any], faults: Faults) -> list[dict[str, Any]]:
    """Return the calls of an answer: one of the first tool, where there are tools."""
    if not body.get("tools") or faults.never_calls:
        return []
    name = "format_disk" if faults.unknown_tool else body["tools"][0]["function"]["name"]
    arguments: Any = '{"city": "Paris"' if faults.malformed_arguments else '{"city": "Paris"}'
    if faults.arguments_as_object:
        arguments = {"city": "Paris"}
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [call if faults.no_call_ids else {"id": "call_1", **call}]


def call_head(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first piece of a streamed call: all but its arguments."""
    return {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
