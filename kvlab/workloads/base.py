"""The base of all workloads: a list of requests, each with its full history and a known right answer.

Workloads know no model, tokenizer, store or decoder: they consist of messages in OpenAI's format.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvlab.errors import WorkloadError
from kvlab.workloads.grading import calls_of, grade_call, grade_values, parse_call
from kvlab.workloads.metrics import Metric, grade_all

Message = dict[str, Any]
Tool = dict[str, Any]

KINDS = ("call", "answer", "recall", "retrieve", "chat", "replay", "question")


@dataclass(frozen=True)
class WorkloadRequest:
    """One request to the model: its full input, and the right answer.

    `messages` is the whole history up to the message that the model must write. The history of the next
    turn holds `reference`, never the model's own words, so that every policy sees the same prompts. Rendered by an
    append-only chat template, the prompt of turn t (with its generation prompt) is a string prefix of the prompt of
    turn t + 1.

    `question` and `wanted` say in text, for a reader, what was asked and what the right answer is. By default they are
    the text of the last user message, and the text of the reference or its calls as JSON (empty without a reference).

    `unseen` is the end of the last user message that comes only after the KV of all before it has been evicted, so that
    no method of eviction can choose by it; empty: everything is seen.

    `metrics` grade the answer in place of the workload's own way; `answer` is what they compare it with, where that is
    more than the text `wanted`: several right answers, or any value that a metric of one's own understands.
    """

    conversation: str
    turn: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    reference: Message | None
    kind: str
    max_tokens: int
    question: str = ""
    wanted: str = ""
    unseen: str = ""
    metrics: tuple[Metric, ...] = ()
    answer: Any = None

    def __post_init__(self) -> None:
        asked = next((message for message in reversed(self.messages) if message["role"] == "user"), None)
        if asked and not self.question:
            object.__setattr__(self, "question", text_of(asked))
        if self.reference and not self.wanted:
            object.__setattr__(self, "wanted", text_of(self.reference))

    def grade(self, text: str) -> dict[str, float]:
        """Grade the model's `text` with scores in [0, 1]; `{}` where none applies, as to small talk and replays.

        A `call` gives `tool_call` (well formed, an offered tool, its required arguments), `argument` (the right
        arguments) and `accuracy` (the right tool with the right arguments). The other graded kinds give `accuracy`: the
        values the text states are exactly the values of the reference. With `metrics`, their grades and `accuracy`, the
        main one of them, wherever there is a right answer; a call is compared as JSON, however the model writes it.

        Raises UserCodeError where a metric fails.
        """
        if self.metrics:
            return self._graded_by_metrics(text)
        if self.reference is None or self.kind in ("chat", "replay", "question"):
            return {}
        if self.kind == "call":
            return grade_call(text, self.reference, self.tools)
        return grade_values(text, self.reference.get("content") or "")

    def _graded_by_metrics(self, text: str) -> dict[str, float]:
        if self.reference is None:
            return {}
        call = parse_call(text) if self.reference.get("tool_calls") else None
        said = call_text(*call) if call else text
        return grade_all(self.metrics, said, self.wanted if self.answer is None else self.answer)


class Workload:
    """A named source of requests. A subclass with a ``name`` is known to ``load_workload`` as soon as it is defined.

    The constructor takes those of the options ``n`` (conversations), ``turns`` (requests of each), ``seed``, ``tokens``
    (length of a prompt) and ``count`` (counts the tokens of a text) that the workload has, by name and with defaults;
    it raises WorkloadError for values that cannot be. An ``argument`` such as ``FILE`` follows the name after a colon
    in a spec, and is the first positional parameter; one with a default may be left out. ``teacher_forced`` says that
    its references are forced upon the model, see :class:`kvlab.workloads.forced.TeacherForced`.
    """

    name: str = ""
    argument: ClassVar[str] = ""
    teacher_forced: ClassVar[bool] = False

    def requests(self) -> list[WorkloadRequest]:
        """Return all requests, conversation by conversation, in turn order; the same ones at every call."""
        raise NotImplementedError


def text_of(message: Message) -> str:
    """Return what a message says as text: its calls as JSON, else its content with the text of all its parts."""
    if message.get("tool_calls"):
        calls = [call_text(*call) for call in calls_of(message)]
        return calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def call_text(name: str, arguments: Any) -> str:
    """Return a call as JSON: one text for equal calls."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, sort_keys=True)


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
    """Cut a conversation into one request per assistant message; `kinds` maps a message's index to its kind."""
    history = tuple(messages)
    indices = [i for i, message in enumerate(history) if message["role"] == "assistant"]
    return [
        WorkloadRequest(conversation, turn, history[:i], tools, history[i], kinds.get(i, "chat"), max_tokens)
        for turn, i in enumerate(indices, start=1)
    ]


def check_count(what: str, value: int | None, least: int = 1) -> None:
    """Raise WorkloadError unless `value` is absent or an integer of at least `least`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise WorkloadError(f"{what} must be a whole number of at least {least}, not {value!r}")
