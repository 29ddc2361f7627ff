"""The calls that a model writes by itself under a policy, and whether two of them are the same call."""

from __future__ import annotations

from collections.abc import Sequence

from kvlab.decoder import Decoder
from kvlab.experiments.forced_answers import ForcedItem
from kvlab.experiments.prompts import Prompts
from kvlab.workloads.grading import parse_call

LONGER = 1.5
"""How much longer than the reference a model's own answer may be; behind that, answers are compared as they are."""


def answer_calls(decoder: Decoder, items: Sequence[ForcedItem], prompts: Prompts) -> list[str | None]:
    """Return the greedy answers to those items whose reference is a call, else None; side by side.

    A call in a form of the model's own is written in the form that is read.
    """
    asked = [bool((item.request.reference or {}).get("tool_calls")) for item in items]
    streams = [
        decoder.submit(item.forced.prompt, max_tokens=int(len(item.forced.answer) * LONGER) + 8) if wanted else None
        for item, wanted in zip(items, asked, strict=True)
    ]
    return [None if stream is None else prompts.answer(stream.result().tokens) for stream in streams]


def same_answer(text: str, other: str | None) -> bool:
    """Return whether two answers are equal: the same calls, or the same text where they hold none."""
    if other is None:
        return False
    if text.split() == other.split():
        return True
    one, two = parse_call(text), parse_call(other)
    return one is not None and one == two
