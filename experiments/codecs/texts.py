"""The texts that codecs are compared on: three kinds, a few parts of each."""

from __future__ import annotations

import json
from pathlib import Path

from kvlab.workloads import load_workload
from kvlab.workloads.base import WorkloadRequest
from kvlab.workloads.forced import TeacherForced, TextRequest

TEXTS = Path(__file__).parent / "texts"
PARTS = 2
CONTEXT_TOKENS, ANSWER_TOKENS = 640, 128
CONVERSATIONS, TURNS = 4, 15
"""Of the workload ``agent``, whose text is put together from them."""


class Texts(TeacherForced):
    """``PARTS`` parts of each text: docs of kvlab, its code, and conversations of the workload ``agent``.

    The files are as they were when they were copied, so that a later change of a page changes no row.
    """

    name = "codecs-texts"

    def requests(self) -> list[WorkloadRequest]:
        return [
            TextRequest(
                f"{kind}-{part}", 1, (), (), None, kind, ANSWER_TOKENS,
                text=text, context_tokens=CONTEXT_TOKENS, part=part, parts=PARTS,
            )
            for kind, text in texts().items()
            for part in range(PARTS)
        ]  # fmt: skip


def texts() -> dict[str, str]:
    """Return the texts by their kind."""
    read = {name: (TEXTS / f"{name}.txt").read_text(encoding="utf-8") for name in ("docs", "code")}
    return read | {"agent": agent_text()}


def agent_text() -> str:
    """Return conversations of the workload ``agent`` as plain text: no token of a template ends an answer in it."""
    last = {}
    for request in load_workload("agent", turns=TURNS, n=CONVERSATIONS, seed=0).requests():
        last[request.conversation] = request
    lines = []
    for request in last.values():
        for message in (*request.messages, *([request.reference] if request.reference else [])):
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            lines.append(f"{message['role']}: {message.get('content') or json.dumps(calls)}")
    return "\n".join(lines)
