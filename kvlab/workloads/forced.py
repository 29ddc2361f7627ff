"""The base of teacher-forced workloads: given answers, led through every policy token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvlab.workloads.base import Workload, WorkloadRequest

TEXT = "text"
"""The kind of requests that are a part of a plain text."""
FORCED_MAX_TOKENS = 192
"""Most tokens of a greedy answer that is compared with that of ``full``."""


@dataclass(frozen=True)
class TextRequest(WorkloadRequest):
    """A part of a plain text: ``context_tokens`` tokens of it, and the ``max_tokens`` tokens behind them.

    It is the ``part``-th of ``parts`` that are spread evenly over the text; the model's tokenizer decides where they
    begin.
    """

    text: str = ""
    context_tokens: int = 0
    part: int = 0
    parts: int = 1

    def cut(self, ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return context and answer out of the token ids of the text; a shorter text gives a shorter context."""
        answer = min(self.max_tokens, max(1, len(ids) // 2))
        size = min(len(ids), self.context_tokens + answer)
        start = self.part * (len(ids) - size) // max(1, self.parts - 1)
        cut = tuple(ids[start : start + size])
        return cut[: size - answer], cut[size - answer :]


class TeacherForced(Workload):
    """A workload whose references are forced upon the model; how far a policy's distributions are from those of full.

    Each request has a ``reference``; a :class:`TextRequest` has its text. Where ``calls_apart`` is set, tokens of names
    and arguments of calls are reported apart from prose, and the call that the model writes by itself is compared too,
    which costs about as much again.
    """

    teacher_forced: ClassVar[bool] = True
    calls_apart: ClassVar[bool] = False
