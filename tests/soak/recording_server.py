"""A recorded kvlab, ``python -m tests.soak.recording_server FILE …``: what its decoder was given, and what it gave.

One JSON line when a request is submitted (its prompt and tenant) and one when it ended (tokens, how, cached tokens, and
``chosen``: where a grammar had a say, the best tokens before and after it, by their place in the answer).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from kvlab.cli import main
from kvlab.decoder import Completion, Decoder, Stream
from kvlab.server.structured.constraint import Constraint

# isort: split
import mlx.core as mx


class Choices:
    """The best token before and after a grammar, by the number of tokens so far. Decoder thread only."""

    def __init__(self) -> None:
        self._of: dict[int, mx.array] = {}

    def add(self, size: int, before: mx.array, after: mx.array) -> None:
        """Note the logits of one step; nothing waits for them."""
        self._of[size] = mx.stack([before[0].argmax(), after[0].argmax()])
        mx.async_eval(self._of[size])

    def behind(self, prompt_tokens: int) -> dict[int, list[int]]:
        """The pairs by the place in the answer."""
        return {size - prompt_tokens: made.tolist() for size, made in self._of.items()}


def record(path: str) -> None:
    """Have every decoder of this process append to ``path``; a line is written whole or, when killed, cut."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    lock = threading.Lock()
    running: dict[Stream, tuple[str, int, Choices]] = {}
    choices: dict[Constraint, Choices] = {}
    numbers = itertools.count()
    submit, finish, constrain = Decoder.submit, Stream.finish, Constraint.__call__

    def write(**line: Any) -> None:
        os.write(file, json.dumps(line).encode() + b"\n")

    def recorded_submit(self: Decoder, prompt: Sequence[int], **options: Any) -> Stream:
        with lock:  # a request may end before submit returns
            noted = Choices()
            choices.update((part, noted) for part in options.get("logits_processors", ()) if type(part) is Constraint)
            stream = submit(self, prompt, **options)
            number = f"{os.getpid()}-{next(numbers)}"
            running[stream] = number, len(prompt), noted
            write(id=number, prompt=list(prompt), tenant=options.get("tenant", ""))
        return stream

    def recorded_constraint(self: Constraint, tokens: mx.array, logits: mx.array) -> mx.array:
        made = constrain(self, tokens, logits)
        if made is not logits:
            choices[self].add(tokens.size, logits, made)
        return made

    def recorded_finish(self: Stream, completion: Completion) -> None:
        with lock:
            number, prompt_tokens, noted = running.pop(self, ("", 0, Choices()))
            for part in [part for part, other in choices.items() if other is noted]:
                del choices[part]
        write(
            id=number,
            tokens=list(completion.tokens),
            reason=completion.finish_reason,
            cached=completion.cached_tokens,
            request=str(completion.tags.get("request", "")),
            chosen=noted.behind(prompt_tokens),
        )
        finish(self, completion)

    Decoder.submit = recorded_submit  # type: ignore[method-assign]
    Stream.finish = recorded_finish  # type: ignore[method-assign]
    Constraint.__call__ = recorded_constraint  # type: ignore[method-assign]


if __name__ == "__main__":
    record(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
