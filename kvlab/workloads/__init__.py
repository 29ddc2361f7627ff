"""What is asked of a model: generated and replayed conversations with known answers."""

from __future__ import annotations

from collections.abc import Callable

from kvlab.errors import WorkloadError
from kvlab.workloads.agent import Agent
from kvlab.workloads.base import KINDS, Message, Workload, WorkloadRequest
from kvlab.workloads.chat import Chat
from kvlab.workloads.retrieval import Retrieval
from kvlab.workloads.transcript import Transcript

__all__ = ["KINDS", "NAMES", "Message", "WorkloadRequest", "Workload", "WorkloadError", "load_workload"]

NAMES = ("agent", "retrieval", "chat", "transcript:FILE")


def load_workload(
    spec: str,
    *,
    turns: int | None = None,
    n: int = 1,
    seed: int = 0,
    tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> Workload:
    """The workload that `spec` names, with `n` conversations of `turns` requests.

    `tokens` is the length of a `retrieval` prompt; `count` counts the tokens of a text (a rule of thumb without it).
    Raises WorkloadError with one line that says what to write instead.
    """
    name, _, argument = spec.partition(":")
    if tokens is not None and name != "retrieval":
        raise WorkloadError(f"tokens applies to the retrieval workload only, not to {spec!r}")
    if name == "transcript":
        if not argument:
            raise WorkloadError("transcript needs a file: write transcript:FILE")
        return Transcript(argument, n=n, turns=turns)
    if argument or name not in NAMES:
        raise WorkloadError(f"unknown workload {spec!r}; choose one of {', '.join(NAMES)}")
    length = {} if turns is None else {"turns": turns}
    if name == "agent":
        return Agent(n=n, seed=seed, **length)
    if name == "chat":
        return Chat(n=n, seed=seed, **length)
    return Retrieval(n=n, seed=seed, tokens=1500 if tokens is None else tokens, count=count, **length)
