"""The calls that a model writes by itself under a policy, and whether two of them are the same call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvlab.decoder import Completion, Decoder, Stream
from kvlab.experiments.forced_answers import ForcedItem
from kvlab.experiments.prompts import Prompts
from kvlab.workloads.grading import parse_call

LONGER = 1.5
"""How much longer than the reference a model's own answer may be; behind that, answers are compared as they are."""
TOKENS_BEHIND_PARTING = 12
"""Tokens that an answer goes on behind the first one that is another than that of ``full``: to see where it goes."""


@dataclass(frozen=True)
class GreedyAnswer:
    """What a model wrote by itself: token ids without the end token, and their text, calls in the form that is read.

    ``cut`` says whether it was ended early, as it was no longer that of ``full``.
    """

    tokens: tuple[int, ...]
    text: str
    cut: bool = False

    @property
    def call(self) -> object:
        """The name and arguments of a text that is exactly one call, else None."""
        return parse_call(self.text)


def answer_calls(
    decoder: Decoder,
    items: Sequence[ForcedItem],
    prompts: Prompts,
    others: Sequence[GreedyAnswer | None] | None = None,
) -> list[GreedyAnswer | None]:
    """Return the greedy answers to those items whose reference is a call, else None; side by side.

    With `others`, the answers under ``full``, an answer ends soon after it cannot be the same any more.
    """
    asked = [bool((item.request.reference or {}).get("tool_calls")) for item in items]
    streams = [
        decoder.submit(item.forced.prompt, max_tokens=int(len(item.forced.answer) * LONGER) + 8) if wanted else None
        for item, wanted in zip(items, asked, strict=True)
    ]
    for stream, other in zip(streams, others or [None] * len(items), strict=True):
        if stream is not None and other is not None and other.call is None:  # two calls may be equal in other words
            stream.listen(_Comparison(stream, other.tokens))
    return [None if stream is None else _answer(stream.result(), prompts) for stream in streams]


def same_answer(one: GreedyAnswer, other: GreedyAnswer | None) -> bool:
    """Return whether two answers are equal: the same call, or the same text where they are not one call each."""
    if other is None:
        return False
    if one.text.split() == other.text.split():
        return True
    return one.call is not None and one.call == other.call


class _Comparison:
    """Listens to an answer, and cancels it a few tokens behind the first one that another answer does not have."""

    def __init__(self, stream: Stream, other: Sequence[int]) -> None:
        self._stream, self._other = stream, other
        self._at = 0
        self._left: int | None = None

    def __call__(self, token: int | None) -> None:
        if token is None:
            return
        if self._left is None and (self._at >= len(self._other) or self._other[self._at] != token):
            self._left = TOKENS_BEHIND_PARTING
        self._at += 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._stream.cancel()


def _answer(done: Completion, prompts: Prompts) -> GreedyAnswer:
    return GreedyAnswer(tuple(done.tokens), prompts.answer(done.tokens), done.finish_reason == "cancelled")
