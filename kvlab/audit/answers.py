"""Compares two answers to one prompt: the same text, a tie that rounding decides, or a different answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kvlab.audit.client import Reply
from kvlab.audit.material import user
from kvlab.audit.probe import Lab

TIE_LOGPROB = 0.2
"""Nats between the two best tokens of a tie. Other chunks of a prompt and other batches move a logprob of 16 bits by
less."""

MAX_TIE_LOGPROB = math.log(0.5) + TIE_LOGPROB
"""The highest logprob that one of two equally good tokens can have."""


@dataclass(frozen=True)
class Comparison:
    """How a second answer differs from the first.

    Attributes:
        equal: Whether text, thinking and calls are the same.
        tie: Whether they part at a token for which two tokens were equally good; False where no logprobs came.
        distance: Largest difference of the logprob of a token that both chose after the same tokens; None without
            logprobs.
        at: Where they part, in words for the detail of a finding; empty where they are equal.
    """

    equal: bool
    tie: bool = False
    distance: float | None = None
    at: str = ""

    @property
    def moved(self) -> bool:
        """Whether a logprob moved more than rounding explains."""
        return self.distance is not None and self.distance > TIE_LOGPROB


def way_to_logprobs(lab: Lab) -> dict[str, Any]:
    """Return the options of a request whose answer has logprobs: streamed, else whole; none where none come."""
    for stream in (True, False):
        reply = lab.client.chat([user("Hello.")], max_tokens=2, logprobs=True, stream=stream)
        if reply.is_complete and reply.logprobs:
            return {"logprobs": True, "stream": stream}
    return {}


def compare_answers(first: Reply, second: Reply) -> Comparison:
    """Compare two greedy answers to the same prompt."""
    distance, parting = _along_logprobs(first, second)
    if _said(first) == _said(second):
        return Comparison(True, distance=distance)
    shown = f"{_start(first)!r} became {_start(second)!r}"
    if parting is None:
        return Comparison(False, distance=distance, at=shown)
    one, other = first.logprobs[parting][1], second.logprobs[parting][1]
    tie = max(one, other) <= MAX_TIE_LOGPROB and abs(one - other) <= TIE_LOGPROB
    tie = tie and (distance is None or distance <= TIE_LOGPROB)
    return Comparison(False, tie, distance, f"{shown}, from token {parting + 1} on")


def _along_logprobs(first: Reply, second: Reply) -> tuple[float | None, int | None]:
    """Return the largest distance over the tokens before the answers part, and the index of the token where they do."""
    distance: float | None = None
    for index, (one, other) in enumerate(zip(first.logprobs, second.logprobs, strict=False)):
        if one[0] != other[0]:
            return distance, index
        distance = max(distance or 0.0, abs(one[1] - other[1]))
    return distance, None


def _said(reply: Reply) -> tuple[object, ...]:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in reply.tool_calls]
    return reply.text, reply.reasoning, tuple(calls)


def _start(reply: Reply) -> str:
    text = reply.text or reply.reasoning
    return text if len(text) <= 40 else f"{text[:40]}…"
