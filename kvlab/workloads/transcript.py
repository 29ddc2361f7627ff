"""`transcript:FILE`: real conversations in OpenAI format, replayed request by request.

Reads JSON Lines (one conversation a line) or one JSON array of conversations, plain or `.xz`. A conversation is a list
of messages, or an object with the list under `messages` (or `traj`) and its tools under `tools`. Tools may also lie
beside the file: `NAME_tools.json` for `NAME_anything.json`, schemas for the conversations that bring none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Tool, Workload, WorkloadRequest, check_count, cut_turns
from kvlab.workloads.json_files import checked_messages, checked_tools, read_entries

_LISTS = ("messages", "traj")
_EXPECTED = 'expected a list of messages, or an object with "messages" and optionally "tools"'


class Transcript(Workload):
    """The first `n` conversations of `path` (all where it is None), each cut after `turns` requests (if given)."""

    name = "transcript"
    argument = "FILE"

    def __init__(self, path: str | Path, n: int | None = 1, turns: int | None = None, max_tokens: int = 32) -> None:
        check_count("n", n)
        check_count("turns", turns)
        self.path, self.n, self.turns, self.max_tokens = Path(path), n, turns, max_tokens
        self.name = f"transcript:{path}"
        beside = _tools_beside(self.path)
        self._conversations = [
            _conversation(where, entry, beside) for where, entry in read_entries(self.path, _EXPECTED)
        ]

    def requests(self) -> list[WorkloadRequest]:
        result: list[WorkloadRequest] = []
        for index, (messages, tools) in enumerate(self._conversations[: self.n]):
            kinds = dict.fromkeys(range(len(messages)), "replay")
            result += cut_turns(f"transcript-{index}", messages, kinds, tools, self.max_tokens)[: self.turns]
        return result


def _conversation(where: str, entry: Any, beside: tuple[Tool, ...]) -> tuple[list[Message], tuple[Tool, ...]]:
    tools = beside
    messages = entry
    if isinstance(entry, dict):
        messages = next((entry[key] for key in _LISTS if key in entry), None)
        if entry.get("tools"):
            tools = checked_tools(where, entry["tools"])
    return checked_messages(where, messages, _EXPECTED), tools


def _tools_beside(path: Path) -> tuple[Tool, ...]:
    """Read schemas in `NAME_tools.json` beside `NAME.json`, `NAME_more.jsonl.xz` ; empty without such a file."""
    stem = path.name.split(".")[0]
    for name in (stem, stem.rsplit("_", 1)[0]):
        beside = path.with_name(f"{name}_tools.json")
        if beside != path and beside.is_file():
            try:
                return checked_tools(str(beside), json.loads(beside.read_text()))
            except json.JSONDecodeError as error:
                where = f"{beside}:{error.lineno}"
                raise WorkloadError(f"{where}: broken JSON ({error.msg}); expected a list of tool schemas") from error
    return ()
