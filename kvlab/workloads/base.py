"""What a workload is: a list of requests, each with its full history and a known right answer.

This floor knows no model, tokenizer, store or decoder: it deals in OpenAI-format messages and text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kvlab.errors import WorkloadError
from kvlab.workloads.grading import grade_call, grade_values

Message = dict[str, Any]
Tool = dict[str, Any]

KINDS = ("call", "answer", "recall", "retrieve", "chat", "replay")


@dataclass(frozen=True)
class WorkloadRequest:
    """One request to the model: everything it is given, and what it should say.

    `messages` is the whole history up to what the model must answer. The history of the next turn holds `reference`,
    never the model's own words, so that every policy sees the same prompts. Rendered by an append-only chat template,
    the prompt of turn t (with its generation prompt) is a string prefix of the prompt of turn t + 1.
    """

    conversation: str
    turn: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reference: Message | None
    kind: str
    max_tokens: int

    def grade(self, text: str) -> dict[str, float]:
        """Scores in [0, 1] for the model's `text`; `{}` where there is nothing to grade (small talk, replays).

        A `call` gives `tool_call` (well formed, an offered tool, its required arguments), `argument` (the right
        arguments) and `accuracy` (the right tool with the right arguments). The other graded kinds give `accuracy`: the
        values the text states are exactly the values of the reference.
        """
        if self.reference is None or self.kind in ("chat", "replay"):
            return {}
        if self.kind == "call":
            return grade_call(text, self.reference, self.tools)
        return grade_values(text, self.reference.get("content") or "")


class Workload(Protocol):
    """A named source of requests. `requests()` is deterministic: conversation by conversation, in turn order."""

    name: str

    def requests(self) -> list[WorkloadRequest]: ...


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def cut_turns(
    conversation: str,
    messages: Iterable[Message],
    kinds: Mapping[int, str],
    tools: tuple[Tool, ...] = (),
    max_tokens: int = 32,
) -> list[WorkloadRequest]:
    """One request per assistant message; `kinds` maps the index of an assistant message to its kind."""
    history = tuple(messages)
    indices = [i for i, message in enumerate(history) if message["role"] == "assistant"]
    return [
        WorkloadRequest(conversation, turn, history[:i], tools, history[i], kinds.get(i, "chat"), max_tokens)
        for turn, i in enumerate(indices, start=1)
    ]


def check_count(what: str, value: int | None, least: int = 1) -> None:
    """Raises WorkloadError unless `value` is absent or an integer of at least `least`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise WorkloadError(f"{what} must be a whole number of at least {least}, not {value!r}")
