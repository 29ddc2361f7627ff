"""A recorded kvlab, ``python -m tests.soak.recording_server FILE …``: what its decoder was given, and what it gave.

One JSON line when a request is submitted (its prompt and tenant) and one when it ended (tokens, how, cached tokens).
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


def record(path: str) -> None:
    """Have every decoder of this process append to ``path``; a line is written whole or, when killed, cut."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    lock = threading.Lock()
    running: dict[Stream, str] = {}
    numbers = itertools.count()
    submit, finish = Decoder.submit, Stream.finish

    def write(**line: Any) -> None:
        os.write(file, json.dumps(line).encode() + b"\n")

    def recorded_submit(self: Decoder, prompt: Sequence[int], **options: Any) -> Stream:
        with lock:  # a request may end before submit returns
            stream = submit(self, prompt, **options)
            running[stream] = f"{os.getpid()}-{next(numbers)}"
            write(id=running[stream], prompt=list(prompt), tenant=options.get("tenant", ""))
        return stream

    def recorded_finish(self: Stream, completion: Completion) -> None:
        with lock:
            number = running.pop(self, "")
        write(
            id=number,
            tokens=list(completion.tokens),
            reason=completion.finish_reason,
            cached=completion.cached_tokens,
            request=str(completion.tags.get("request", "")),
        )
        finish(self, completion)

    Decoder.submit = recorded_submit  # type: ignore[method-assign]
    Stream.finish = recorded_finish  # type: ignore[method-assign]


if __name__ == "__main__":
    record(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
