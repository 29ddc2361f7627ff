"""What several benchmarks do with a decoder: keep when tokens came, and have a model never end its answer."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx

from kvlab.decoder import Stream
from kvlab.models import LoadedModel
from kvlab.recording import events


class TokenTimes:
    """An event sink that keeps when each request got its tokens.

    Attributes:
        by_request: seconds of ``time.perf_counter``, by the request's number.
    """

    def __init__(self) -> None:
        self.by_request: dict[int, list[float]] = {}

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.FirstToken | events.Token):
            self.by_request.setdefault(event.request, []).append(event.t)

    def wait_for(self, stream: Stream, tokens: int) -> None:
        """Return once ``stream`` has got so many tokens, or has ended."""
        while len(self.by_request.get(stream.request, ())) < tokens and not stream.done:
            time.sleep(0.005)


def no_end(loaded: LoadedModel) -> Any:
    """A logits processor under which the model never ends its answer."""
    ends = mx.array(sorted(loaded.eos))

    def process(_: mx.array, logits: mx.array) -> mx.array:
        logits[:, ends] = -mx.inf
        return logits

    return process


def random_prompt(loaded: LoadedModel, rng: Any, count: int) -> list[int]:
    """``count`` random token ids of the model's vocabulary, special ones left out."""
    return rng.integers(3, min(1000, loaded.vocab_size), count).tolist()
