"""Sessions of coding agents as kv-cache-tester keeps them: one JSON file a session.

A request has ``t`` in seconds from the session's start, ``in`` and ``out`` in tokens, and ``hash_ids`` of the full
blocks of its prompt, which are local to the session; the tokens behind the last full block are in none. An entry
``{"type": "subagent", "t": ..., "requests": [...]}`` holds an agent's own requests, whose ``t`` count from its start.

Sessions begin together and interleave by their own times. ``tool_tokens`` and ``system_tokens`` give the size of the
head with which an agent's prompts begin: heads of the same two sizes and of the same kind (the main agent, or a
``subagent_type``) are taken to be equal, and are shared by all sessions. All requests are taken to be of one model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from kvlab.replay.errors import TraceError
from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TracePart, TraceSource
from kvlab.replay.trace import BlockTrace, block_trace

MAIN = "main"
SESSION = "a session such as {id, block_size, tool_tokens, system_tokens, requests}"
REQUEST = "a request such as {t, in, out, hash_ids}, with one id for each full block of its tokens"


@dataclass(frozen=True)
class _Asked:
    """One request with global block ids."""

    time: float
    tokens: int
    answered: int
    session: int
    blocks: np.ndarray


class KvCacheTester(TraceLoader):
    """Reads a session file, a folder of them or an archive; a subagent is a session of its own."""

    name = "kv-cache-tester"
    about = "JSON sessions of coding agents with hash_ids that are local to each; a file, a folder or an archive"

    def recognises(self, source: TraceSource) -> bool:
        return source.start.lstrip().startswith("{") and all(
            f'"{name}"' in source.start for name in ("tool_tokens", "system_tokens", "requests")
        )

    def load(self, source: TraceSource) -> BlockTrace:
        sessions = _Sessions()
        asked = [one for part in source.parts() for one in sessions.read(part)]
        if not sessions.block_tokens:
            raise TraceError(f"{source.path}: no JSON files in it; expected {SESSION}")
        return block_trace(
            source.name,
            sessions.block_tokens,
            [one.blocks for one in asked],
            times=[one.time for one in asked],
            input_tokens=[one.tokens for one in asked],
            output_tokens=[one.answered for one in asked],
            sessions=[one.session for one in asked],
        )


class _Sessions:
    """Gives the local ids of sessions global numbers, and those of equal heads the same ones."""

    def __init__(self) -> None:
        self.block_tokens = 0
        self._used = 0
        self._count = 0
        self._heads: dict[tuple[str, int, int], np.ndarray] = {}

    def read(self, part: TracePart) -> Iterator[_Asked]:
        try:
            found = orjson.loads(part.data)
            block, entries = int(found["block_size"]), found["requests"]
            agents = list(_agents(found, entries))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise part.error(1, SESSION) from None
        if block < 1 or self.block_tokens not in (0, block):
            raise part.error(1, f"block_size {self.block_tokens or 'of one or more'}", str(block))
        self.block_tokens = block
        ids = [self._checked(part, agent.requests) for agent in agents]
        size = 1 + max((int(one.max(initial=0)) for own in ids for one in own), default=0)
        table = np.arange(self._used, self._used + size, dtype=np.int32)
        self._used += len(table)
        unshared = table.copy()
        for agent, own in zip(agents, ids, strict=True):
            self._share_head(agent, own, table, unshared)
        for agent, own in zip(agents, ids, strict=True):
            for request, local in zip(agent.requests, own, strict=True):
                time = agent.start + float(request["t"])
                yield _Asked(time, request["in"], int(request.get("out", 0)), self._count, table[local])
            self._count += 1

    def _checked(self, part: TracePart, requests: list[Mapping[str, Any]]) -> list[np.ndarray]:
        found = []
        for place, request in enumerate(requests):
            try:
                ids = np.array(request["hash_ids"], np.int32)
                is_right = ids.ndim == 1 and len(ids) == request["in"] // self.block_tokens and ids.min(initial=0) >= 0
                float(request["t"])
            except (KeyError, TypeError, ValueError, OverflowError):
                is_right = False
            if not is_right:
                raise part.error(1, f"{REQUEST}, as request {place} of an agent")
            found.append(ids)
        return found

    def _share_head(self, agent: _Agent, ids: list[np.ndarray], table: np.ndarray, unshared: np.ndarray) -> None:
        """Let the head of an agent's first request have the numbers of all equal heads."""
        if not ids:
            return
        local = ids[0][: (agent.tool_tokens + agent.system_tokens) // self.block_tokens]
        key = (agent.kind, agent.tool_tokens, agent.system_tokens)
        shared = self._heads.get(key, np.empty(0, np.int32))
        if len(shared) < len(local):
            more = np.arange(self._used, self._used + len(local) - len(shared), dtype=np.int32)
            self._used += len(more)
            shared = self._heads[key] = np.concatenate([shared, more])
        if (table[local] != unshared[local]).any():
            return  # an agent of this session begins so, too: its blocks have their numbers
        table[local] = shared[: len(local)]


@dataclass(frozen=True)
class _Agent:
    kind: str
    start: float
    tool_tokens: int
    system_tokens: int
    requests: list[Mapping[str, Any]]


def _agents(session: Mapping[str, Any], entries: list[Mapping[str, Any]], start: float = 0.0) -> Iterator[_Agent]:
    """Yield the agent of a session, then its subagents, however deep they are nested."""
    own = [entry for entry in entries if "requests" not in entry]
    kind = str(session.get("subagent_type", MAIN))
    yield _Agent(kind, start, int(session["tool_tokens"]), int(session["system_tokens"]), own)
    for entry in entries:
        if "requests" in entry:
            yield from _agents(entry, entry["requests"], start + float(entry["t"]))
