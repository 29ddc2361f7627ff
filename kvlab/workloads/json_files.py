"""Read entries from a file: JSON Lines, or one JSON array, plain or `.xz`; check conversations in OpenAI's format."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Tool

ROLES = ("system", "developer", "user", "assistant", "tool")

Entry = tuple[str, Any]
"""Where an entry was found, such as `FILE:LINE`, and the entry itself."""


def read_entries(path: Path, expected: str) -> list[Entry]:
    """Return the entries of a file in their order; an array of messages is one conversation.

    Raises WorkloadError with file, line and what was `expected`.
    """
    text = _text(path)
    entries = _array(path, text, expected) if text.lstrip().startswith("[") else _lines(path, text, expected)
    if not entries:
        raise WorkloadError(f"{path}: nothing in it; {expected}, one a line or in one array")
    return entries


def checked_messages(where: str, messages: Any, expected: str) -> list[Message]:
    """Return the messages of a conversation. Raises WorkloadError for what is none."""
    if not isinstance(messages, list) or not messages:
        raise WorkloadError(f"{where}: {expected}")
    return [_message(where, number, message) for number, message in enumerate(messages, start=1)]


def checked_tools(where: str, tools: Any) -> tuple[Tool, ...]:
    """Return a list of tool schemas. Raises WorkloadError for what is none."""
    for tool in tools if isinstance(tools, list) else [None]:
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict) or "name" not in tool["function"]:
            raise WorkloadError(f'{where}: tools must be a list of {{"type": "function", "function": {{"name", ...}}}}')
    return tuple(tools)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise WorkloadError(f"{path}: {reason}; give a .jsonl or .json file, plain or .xz") from error
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        kind = "xz" if path.suffix == ".xz" else "UTF-8"
        raise WorkloadError(f"{path}: not readable as {kind} text ({error})") from error


def _array(path: Path, text: str, expected: str) -> list[Entry]:
    """Return the entries of a JSON array, each with the line it begins on; an array of messages is one conversation."""
    decoder, entries, line = json.JSONDecoder(object_pairs_hook=_object), [], 1
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
        raise WorkloadError(f"{path}:{error.lineno}: broken JSON ({error.msg}); {expected}") from error
    except (RecursionError, _TwoKeysError) as error:
        raise WorkloadError(f"{path}:{line}: broken JSON ({_why(error)}); {expected}") from error
    if text[at + 1 :].strip():  # more follows: an array on every line
        return _lines(path, text, expected)
    if entries and isinstance(entries[0][1], dict) and "role" in entries[0][1]:
        return [(entries[0][0], [entry for _, entry in entries])]
    return entries


def _lines(path: Path, text: str, expected: str) -> list[Entry]:
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other ends of lines within a text
        if not line.strip():
            continue
        try:
            entries.append((f"{path}:{number}", json.loads(line, object_pairs_hook=_object)))
        except json.JSONDecodeError as error:
            where = f"{path}:{number}"
            raise WorkloadError(f"{where}: broken JSON ({error.msg} at column {error.colno}); {expected}") from error
        except (RecursionError, _TwoKeysError) as error:
            raise WorkloadError(f"{path}:{number}: broken JSON ({_why(error)}); {expected}") from error
    return entries


class _TwoKeysError(Exception):
    """An object of a file has one key twice, of which JSON's reader would drop the first."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwoKeysError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return made


def _why(error: Exception) -> str:
    return "too many levels" if isinstance(error, RecursionError) else str(error)


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
