"""`transcript:FILE`: real conversations in OpenAI format, replayed request by request.

Reads JSON Lines (one conversation a line) or one JSON array of conversations, plain or `.xz`. A conversation is a list
of messages, or an object with the list under `messages` (or `traj`) and its tools under `tools`. Tools may also lie
beside the file: `NAME_tools.json` for `NAME_anything.json`, schemas for the conversations that bring none.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Tool, Workload, WorkloadRequest, check_count, cut_turns

ROLES = ("system", "developer", "user", "assistant", "tool")
_LISTS = ("messages", "traj")
_EXPECTED = 'expected a list of messages, or an object with "messages" and optionally "tools"'


class Transcript(Workload):
    """The first `n` conversations of `path` (all without `n`), each cut after `turns` requests (if given)."""

    name = "transcript"
    argument = "FILE"

    def __init__(self, path: str | Path, n: int | None = None, turns: int | None = None, max_tokens: int = 32) -> None:
        check_count("n", n)
        check_count("turns", turns)
        self.path, self.n, self.turns, self.max_tokens = Path(path), n, turns, max_tokens
        self.name = f"transcript:{path}"
        self._conversations = _read(self.path)

    def requests(self) -> list[WorkloadRequest]:
        result: list[WorkloadRequest] = []
        for index, (messages, tools) in enumerate(self._conversations[: self.n]):
            kinds = dict.fromkeys(range(len(messages)), "replay")
            result += cut_turns(f"transcript-{index}", messages, kinds, tools, self.max_tokens)[: self.turns]
        return result


def _read(path: Path) -> list[tuple[list[Message], tuple[Tool, ...]]]:
    """Read every conversation with its tools. Raises WorkloadError with file, line and the expected form."""
    text = _text(path)
    beside = _tools_beside(path)
    conversations = _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)
    if not conversations:
        raise WorkloadError(f"{path}: no conversation in it; {_EXPECTED}, one a line or in one array")
    return [_conversation(where, entry, beside) for where, entry in conversations]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    except OSError as error:
        reason = error.strerror or error
        raise WorkloadError(f"{path}: {reason}; give a .jsonl or .json file of conversations, plain or .xz") from error
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        kind = "xz" if path.suffix == ".xz" else "UTF-8"
        raise WorkloadError(f"{path}: not readable as {kind} text ({error})") from error


def _array(path: Path, text: str) -> list[tuple[str, Any]]:
    """Return the entries of a JSON array, each with the line it begins on; an array of messages is one conversation."""
    decoder, entries = json.JSONDecoder(), []
    try:
        at = text.index("[") + 1
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                break
            line = text.count("\n", 0, at) + 1
            entry, at = decoder.raw_decode(text, at)
            entries.append((f"{path}:{line}", entry))
    except json.JSONDecodeError as error:
        raise WorkloadError(f"{path}:{error.lineno}: broken JSON ({error.msg}); {_EXPECTED}") from error
    if text[at + 1 :].strip():  # more follows: an array on every line
        return _lines(path, text)
    if entries and isinstance(entries[0][1], dict) and "role" in entries[0][1]:
        return [(entries[0][0], [entry for _, entry in entries])]
    return entries


def _lines(path: Path, text: str) -> list[tuple[str, Any]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entries.append((f"{path}:{number}", json.loads(line)))
        except json.JSONDecodeError as error:
            where = f"{path}:{number}"
            raise WorkloadError(f"{where}: broken JSON ({error.msg} at column {error.colno}); {_EXPECTED}") from error
    return entries


def _conversation(where: str, entry: Any, beside: tuple[Tool, ...]) -> tuple[list[Message], tuple[Tool, ...]]:
    tools = beside
    messages = entry
    if isinstance(entry, dict):
        messages = next((entry[key] for key in _LISTS if key in entry), None)
        if entry.get("tools"):
            tools = _checked_tools(where, entry["tools"])
    if not isinstance(messages, list) or not messages:
        raise WorkloadError(f"{where}: {_EXPECTED}")
    return [_message(where, number, message) for number, message in enumerate(messages, start=1)], tools


def _message(where: str, number: int, message: Any) -> Message:
    """Check a message: a known role, text where text belongs, tool calls with a name and arguments."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise WorkloadError(f"{where}: message {number} has role {role!r}; expected one of {', '.join(ROLES)}")
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and message["role"] != "assistant":
        raise WorkloadError(f"{where}: message {number} ({message['role']}) has tool_calls; only assistant may")
    for call in calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not {"name", "arguments"} <= set(function):
            raise WorkloadError(f'{where}: message {number}: a tool call needs {{"function": {{"name", "arguments"}}}}')
    if not isinstance(content, str | list) and not (content is None and calls):
        raise WorkloadError(f"{where}: message {number} ({message['role']}) has no content; expected text")
    return message


def _tools_beside(path: Path) -> tuple[Tool, ...]:
    """Read schemas in `NAME_tools.json` beside `NAME.json`, `NAME_more.jsonl.xz` ; empty without such a file."""
    stem = path.name.split(".")[0]
    for name in (stem, stem.rsplit("_", 1)[0]):
        beside = path.with_name(f"{name}_tools.json")
        if beside != path and beside.is_file():
            try:
                return _checked_tools(str(beside), json.loads(beside.read_text()))
            except json.JSONDecodeError as error:
                where = f"{beside}:{error.lineno}"
                raise WorkloadError(f"{where}: broken JSON ({error.msg}); expected a list of tool schemas") from error
    return ()


def _checked_tools(where: str, tools: Any) -> tuple[Tool, ...]:
    for tool in tools if isinstance(tools, list) else [None]:
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict) or "name" not in tool["function"]:
            raise WorkloadError(f'{where}: tools must be a list of {{"type": "function", "function": {{"name", ...}}}}')
    return tuple(tools)
