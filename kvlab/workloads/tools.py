"""`tools:PATH`: tool calls of BFCL, tau-bench or any transcripts, teacher-forced: what breaks them first.

PATH is a file, or a folder whose `.json` and `.jsonl` files (plain or `.xz`) are all read. A file holds items of BFCL,
one a line, with their answers in `possible_answer/` beside it; or conversations as `transcript:FILE` reads them, of
which tau-bench's are an example. Files named `NAME_tools.json` are the tools of conversations, and no items.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, ClassVar

from kvlab.errors import WorkloadError
from kvlab.workloads import bfcl
from kvlab.workloads.base import WorkloadRequest, check_count
from kvlab.workloads.forced import FORCED_MAX_TOKENS, TeacherForced
from kvlab.workloads.transcript import Transcript

ENDINGS = (".json", ".jsonl", ".ndjson")
CALL, TEXT_ANSWER = "call", "chat"
_EXPECTED = "give a file of BFCL items or of conversations with tool calls, or a folder of such files"


class Tools(TeacherForced):
    """The first `n` items (all without `n`), the files in turn; of a conversation, `turns` calls and as many texts.

    An item is a question of BFCL or a conversation. Without `turns`, all answers of a conversation count. With `n`,
    another `seed` takes other items: seed 1 the next `n`, and so on.
    """

    name = "tools"
    argument = "PATH"
    calls_apart: ClassVar[bool] = True

    def __init__(self, path: str | Path, n: int | None = None, turns: int | None = None, seed: int = 0) -> None:
        check_count("n", n)
        check_count("turns", turns)
        self.path, self.n, self.turns = Path(path), n, turns
        self.name = f"tools:{path}"
        files = [list(self._items(file)) for file in item_files(self.path)]
        mixed = (item for group in zip_longest(*files) for item in group if item is not None)
        first = max(0, seed) * (n or 0)
        items = list(islice(mixed, first, None if n is None else first + n))
        if first and not items:
            raise WorkloadError(
                f"{path}: {sum(map(len, files))} items, so {n} of them with seed {seed} are none; write a smaller seed"
            )
        self._requests = [request for item in items for request in item]
        if not any(request.kind == CALL for request in self._requests):
            raise WorkloadError(f"{path}: no tool call in it; {_EXPECTED}")

    def requests(self) -> list[WorkloadRequest]:
        return list(self._requests)

    def _items(self, path: Path) -> Iterator[list[WorkloadRequest]]:
        """Yield the requests of each item of a file."""
        entries = _bfcl_entries(path)
        if entries is not None:
            yield from ([request] for request in _bfcl_requests(path, entries))
            return
        conversations: dict[str, list[WorkloadRequest]] = {}
        for request in Transcript(path, None, max_tokens=FORCED_MAX_TOKENS).requests():
            conversations.setdefault(request.conversation, []).append(request)
        for name, requests in conversations.items():
            yield list(self._chosen(f"{_stem(path)}-{name.rpartition('-')[2]}", requests))

    def _chosen(self, conversation: str, requests: list[WorkloadRequest]) -> Iterator[WorkloadRequest]:
        """Yield the first `turns` calls of a conversation and as many texts, in their order."""
        counts = {CALL: 0, TEXT_ANSWER: 0}
        for request in requests:
            reference = request.reference or {}
            kind = CALL if reference.get("tool_calls") else TEXT_ANSWER
            if self.turns is None or counts[kind] < self.turns:
                counts[kind] += 1
                yield WorkloadRequest(
                    conversation, request.turn, request.messages, request.tools, reference, kind, request.max_tokens
                )


def item_files(path: Path) -> list[Path]:
    """Return the files of items at ``path``. Raises WorkloadError where there are none."""
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in sorted(path.iterdir())
        if file.is_file()
        and Path(file.name.removesuffix(".xz")).suffix in ENDINGS
        and not _stem(file).endswith("_tools")
    ]
    if not found:
        raise WorkloadError(f"{path}: no {', '.join(ENDINGS)} file in this folder; {_EXPECTED}")
    return found


def _bfcl_entries(path: Path) -> list[tuple[int, Mapping[str, Any]]] | None:
    """Return the items of a file of BFCL with their lines; None where it is a file of something else."""
    entries: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if not entries:
                return None
            raise WorkloadError(f"{path}:{number}: broken JSON ({error.msg}); expected an item of BFCL") from error
        if not bfcl.is_bfcl(entry):
            if not entries:
                return None
            raise WorkloadError(f'{path}:{number}: expected an item of BFCL, with "question" and "function"')
        entries.append((number, entry))
    return entries or None


def _bfcl_requests(path: Path, entries: list[tuple[int, Mapping[str, Any]]]) -> Iterator[WorkloadRequest]:
    beside = path.parent / bfcl.ANSWERS / path.name
    inside = all("ground_truth" in entry for _, entry in entries)
    if not inside and not beside.is_file():
        raise WorkloadError(f"{path}: no answers; put them in {beside}, as BFCL does")
    answers = {} if inside else bfcl.answers_beside(beside, _text(beside))
    for number, entry in entries:
        where, name = f"{path}:{number}", str(entry.get("id", f"{_stem(path)}-{number}"))
        answer = entry if inside else answers.get(name)
        if answer is None:
            raise WorkloadError(f"{where}: no answer with the id {name!r} in {beside}")
        try:
            calls, tools, messages = bfcl.calls_of_answer(answer), bfcl.tools_of(entry), bfcl.messages_of(entry)
        except WorkloadError as error:
            raise WorkloadError(f"{where}: {error}") from error
        reference = {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for i, (name, arguments) in enumerate(calls)
            ],
        }
        yield WorkloadRequest(name, 1, messages, tools, reference, CALL, FORCED_MAX_TOKENS)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror or error}; {_EXPECTED}") from error
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: not readable as UTF-8 text ({error}); {_EXPECTED}") from error


def _stem(path: Path) -> str:
    return path.name.split(".")[0]
