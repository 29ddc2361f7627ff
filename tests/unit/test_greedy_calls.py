"""A greedy answer that cannot be that of ``full`` any more ends soon; equality is that of whole answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvlab.decoder import Stream
from kvlab.experiments.greedy_calls import TOKENS_BEHIND_PARTING, GreedyAnswer, answer_calls, same_answer

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
SPACED = '<tool_call>{"name":"add",  "arguments": {"b": 2, "a": 1}}</tool_call>'


class Writer:
    """A decoder whose answers are given; counts how many tokens each request has written when it ended."""

    def __init__(self, *answers: list[int]) -> None:
        self.answers, self.written = answers, [0] * len(answers)
        self.ended: set[int] = set()
        self.streams: list[Stream] = []

    def submit(self, prompt: Any, max_tokens: int) -> Stream:
        stream = Stream(len(self.streams), self.ended.add)
        self.streams.append(stream)
        if len(self.streams) == len(self.answers):
            self._wrap_last(stream)
        return stream

    def _wrap_last(self, last: Stream) -> None:
        """Write all answers token by token when the first of them is waited for."""
        first = self.streams[0]
        waited = first.result

        def write(timeout: float | None = None) -> Any:
            for at in range(max(map(len, self.answers))):
                for index, answer in enumerate(self.answers):
                    if index not in self.ended and at < len(answer):
                        self.streams[index].push(answer[at])
                        self.written[index] += 1
            for index, (stream, count) in enumerate(zip(self.streams, self.written, strict=True)):
                reason = "cancelled" if index in self.ended else "stop"
                done = SimpleNamespace(tokens=tuple(self.answers[index][:count]), finish_reason=reason)
                stream.finish(done)  # type: ignore[arg-type]
            return waited(timeout)

        first.result = write  # type: ignore[method-assign]


def items(count: int) -> Any:
    request = SimpleNamespace(reference={"tool_calls": [{}]})
    return [SimpleNamespace(request=request, forced=SimpleNamespace(prompt=[1], answer=[1] * 40))] * count


def texts(tokens: Any) -> str:
    return " ".join(map(str, tokens))


def test_answers_end_soon_behind_the_first_token_that_full_does_not_have() -> None:
    full = [GreedyAnswer(tuple(range(30)), "words") for _ in range(3)]
    same, parted, longer = list(range(30)), [0, 1, 99, *range(50)], [*range(30), *range(100)]
    writer = Writer(same, parted, longer)
    prompts = SimpleNamespace(answer=texts)
    found = answer_calls(writer, items(3), prompts, full)  # type: ignore[arg-type]
    assert writer.written == [30, 2 + TOKENS_BEHIND_PARTING, 30 + TOKENS_BEHIND_PARTING]
    assert [answer.text for answer in found if answer] == [texts(same), texts(parted[:14]), texts(longer[:42])]
    assert [answer.cut for answer in found if answer] == [False, True, True]


def test_answers_beside_one_call_of_full_are_written_to_their_end() -> None:
    full = [GreedyAnswer((1, 2, 3), CALL)]
    writer = Writer(list(range(50, 90)))
    answer_calls(writer, items(1), SimpleNamespace(answer=texts), full)  # type: ignore[arg-type]
    assert writer.written == [40], "a call may be the same in other words"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (CALL, CALL, True),
        (CALL, SPACED, True),
        (CALL, CALL.replace("2", "3"), False),
        (CALL, f"{CALL} and more", False),
        ("no  call", "no call", True),
        ("no call", CALL, False),
    ],
)
def test_equal_answers_are_the_same_call_or_the_same_text(one: str, other: str, same: bool) -> None:
    assert same_answer(GreedyAnswer((1,), one), GreedyAnswer((2,), other)) is same
    assert not same_answer(GreedyAnswer((1,), one), None)
