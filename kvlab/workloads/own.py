"""`own:FILE`: questions and conversations of one's own, from a file, or in Python from lists, dicts and frames."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Workload, WorkloadRequest, assistant, check_count, cut_turns, system, user
from kvlab.workloads.json_files import Entry, checked_messages, checked_tools, read_entries
from kvlab.workloads.metrics import answer_texts, find_metrics

SUFFIXES = (".jsonl", ".ndjson", ".json", ".xz")
COLUMNS = (
    "question", "context", "answer", "answers", "system", "messages", "tools", "id", "max_tokens",
)  # fmt: skip
"""What an item may say; other columns are left alone."""
MAX_TOKENS = 64
_EXPECTED = (
    'expected questions such as {"question": "…", "answer": "…"}, with "context" where they are about a text, or '
    'conversations such as {"messages": [{"role": "user", "content": "…"}]}'
)


class Own(Workload):
    """Questions and conversations of `data`; the first `n`, or all without a number.

    `data` is the path of a file (JSON Lines or one JSON array, also `.xz`), a frame, a list of items, or one item. An
    item is a question, a dict with the text `question`; or a conversation, a list of messages in OpenAI's format, or a
    dict with that list under `messages`, of which every assistant message is asked for, and one more where the user
    has the last word. A list of messages is one conversation.

    The other keys of an item are optional: `context`, a text in front of the question; `answer`, what is right: a text,
    a number, a list of those of which any is right, or another value that a metric of one's own understands;
    `answers`, such a list, also as SQuAD writes it, `{"text": [...]}`; `system`; `tools`; `id`, the conversation's name
    in rows; `max_tokens`, else those of the constructor. A question without an answer has no grade. Questions are
    graded by `contains`, conversations by no metric, unless others are named.

    Raises WorkloadError with the file and line, or the number of the item, of what cannot be read.
    """

    name = "own"
    argument = "FILE"

    def __init__(self, data: Any, n: int | None = None, turns: int | None = None, max_tokens: int = MAX_TOKENS) -> None:
        check_count("n", n)
        check_count("turns", turns)
        check_count("max_tokens", max_tokens)
        self.turns, self.max_tokens = turns, max_tokens
        if isinstance(data, str | Path):
            self.name = f"own:{data}"
            entries = read_entries(Path(data), _EXPECTED)
        else:
            entries = _entries(data)
        self._requests = [request for _, item in self._items(entries[:n]) for request in item]

    def requests(self) -> list[WorkloadRequest]:
        return list(self._requests)

    def _items(self, entries: list[Entry]) -> list[tuple[str, list[WorkloadRequest]]]:
        """Return the requests of every item. Raises WorkloadError, also where two items have one name."""
        made: dict[str, tuple[str, list[WorkloadRequest]]] = {}
        for index, (where, item) in enumerate(entries):
            given = item.get("id") if isinstance(item, Mapping) else None
            name = f"own-{index}" if _missing(given) else str(given)
            if name in made:
                raise WorkloadError(
                    f"{where}: the id {name!r} is that of {made[name][0]} too; give each its own, or none"
                )
            made[name] = (where, self._item(where, name, item))
        return list(made.values())

    def _item(self, where: str, name: str, item: Any) -> list[WorkloadRequest]:
        if isinstance(item, list | tuple):
            item = {"messages": list(item)}
        if not isinstance(item, Mapping):
            raise WorkloadError(f"{where}: {_short(item)} is {type(item).__name__}; {_EXPECTED}")
        values = {key: value for key, value in item.items() if not _missing(value)}
        for key in values:
            if isinstance(key, str) and key not in COLUMNS and key.strip().lower() in COLUMNS:
                raise WorkloadError(f"{where}: {key!r} is not read; rename it to {key.strip().lower()!r}")
        max_tokens = values.get("max_tokens", self.max_tokens)
        check_count(f"{where}: max_tokens", max_tokens)
        tools = checked_tools(where, values["tools"]) if "tools" in values else ()
        opening = [system(_text(where, "system", values))] if "system" in values else []
        if "messages" in values:
            messages = opening + checked_messages(where, values["messages"], _EXPECTED)
            return _conversation(where, name, messages, tools, max_tokens)[: self.turns]
        asked = _text(where, "question", values)
        context = _text(where, "context", values) if "context" in values else ""
        prompt = (*opening, user(f"{context}\n\n{asked}" if context else asked))
        answer = _answer(where, values)
        wanted = _wanted(answer)
        right = None if answer is None else assistant((answer_texts(answer) or [wanted])[0])
        metrics = find_metrics("contains") if answer_texts(answer) else ()
        told: dict[str, Any] = {"question": asked, "wanted": wanted, "metrics": metrics, "answer": answer}
        return [WorkloadRequest(name, 1, prompt, tools, right, "question", max_tokens, **told)]


def _entries(data: Any) -> list[Entry]:
    """Return the items of data in memory with their numbers. Raises WorkloadError for what is no data."""
    if isinstance(data, Mapping):
        items = [data]
    elif hasattr(data, "to_dicts"):  # Polars
        items = data.to_dicts()
    elif hasattr(data, "columns") and hasattr(data, "to_dict"):  # pandas
        columns = [str(column) for column in data.columns]
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise WorkloadError(f"the frame has two columns {twice[0]!r}; rename one")
        items = data.to_dict(orient="records")
    elif hasattr(data, "to_pylist"):  # Arrow
        items = data.to_pylist()
    elif isinstance(data, Iterable) and not isinstance(data, bytes):
        items = list(data)
    else:
        raise WorkloadError(f"{_short(data)} is no workload; {_EXPECTED}, or a file or frame of those, or a name")
    if not items:
        raise WorkloadError(f"there is no question in this {type(data).__name__}; {_EXPECTED}")
    if isinstance(items[0], Mapping) and "role" in items[0]:
        return [("the conversation", items)]
    return [(f"item {number}", item) for number, item in enumerate(items, start=1)]


def _conversation(
    where: str, name: str, messages: list[Message], tools: tuple[Any, ...], max_tokens: int
) -> list[WorkloadRequest]:
    """Return a request for every assistant message, and one more where the last message is another's."""
    first = next((message["role"] for message in messages if message["role"] not in ("system", "developer")), None)
    if first != "user":
        raise WorkloadError(f"{where}: the conversation begins with {first or 'nothing'}; begin it with a user message")
    made = cut_turns(name, messages, dict.fromkeys(range(len(messages)), "replay"), tools, max_tokens)
    if messages[-1]["role"] != "assistant":
        made.append(WorkloadRequest(name, len(made) + 1, tuple(messages), tools, None, "replay", max_tokens))
    return made


def _text(where: str, key: str, values: Mapping[Any, Any]) -> str:
    if key not in values:
        raise WorkloadError(
            f"{where}: there is no {key!r} among {', '.join(map(repr, values)) or 'nothing'}; {_EXPECTED}"
        )
    value = values[key]
    if not isinstance(value, str) or not value.strip():
        raise WorkloadError(f"{where}: {key} is {_short(value)}; write text")
    return value


def _answer(where: str, values: Mapping[Any, Any]) -> Any:
    """Return what is right: the answer as it was given, the list of answers, or None."""
    if "answers" not in values:
        answer: Any = values.get("answer")
        answer = answer.tolist() if hasattr(answer, "tolist") else answer  # a value or an array of NumPy
        return None if isinstance(answer, list | tuple) and not answer else answer
    if "answer" in values:
        raise WorkloadError(f"{where}: there are both 'answer' and 'answers'; keep one")
    answers = values["answers"]
    if isinstance(answers, Mapping):
        answers = answers.get("text")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, Iterable):
        raise WorkloadError(f"{where}: answers is {_short(values['answers'])}; write a list of texts")
    return list(answers) or None


def _wanted(answer: Any) -> str:
    """Return an answer as a reader sees it."""
    texts = answer_texts(answer)
    if answer is None or texts is not None:
        return " or ".join(texts or ())
    try:
        return json.dumps(answer, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(answer)


def _missing(value: Any) -> bool:
    """Return whether there is no value: None, or the NaN and NaT of frames, which differ from themselves."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # arrays compare item by item; a library's own missing value compares to nothing
        return type(value).__name__ == "NAType"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
