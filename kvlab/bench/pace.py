"""A long prompt beside decoding sequences: how long they wait for their tokens, and how fast it gets on."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from kvlab.bench.models import random_qwen3
from kvlab.bench.overhead import no_end
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.recording import events

LONG = 8000
OTHERS = 8
SHORT = 64
QUIET = 60
"""Steps without the long prompt, before it and after."""


class TimesByRequest:
    """When each request got its tokens."""

    def __init__(self) -> None:
        self.of: dict[int, list[float]] = {}

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.FirstToken | events.Token):
            self.of.setdefault(event.request, []).append(event.t)


def run(*, model: str | None = None, seed: int = 0, rounds: int = 3) -> list[dict[str, Any]]:
    """Rows per model (bundled or ``model``, and a random-weight Qwen3 of 10M parameters): ``itl_p50_ms`` of 8 sequences
    that decode undisturbed, before and after their ``itl_p99_ms`` while a prompt of 8,000 tokens is prefilled (they
    grow meanwhile), the ``ratio`` of these; ``ttft_ms`` of that prompt alone and beside them, and the ratio of its
    prefill rates. Medians over ``rounds``.
    """
    rows: list[dict[str, Any]] = []
    for loaded in (load(model), random_qwen3(seed=seed)):
        measured = [_measure(loaded, seed + one) for one in range(rounds + 1)][1:]  # the first warms up
        quiet, busy, alone, beside = (statistics.median(column) for column in zip(*measured, strict=True))
        about = {"policy": "paged", "workload": "long prompt beside 8", "n": OTHERS + 1, "model": loaded.name}
        rows += [
            {**about, "metric": "itl_p50_ms", "value": quiet, "unit": "ms", "phase": "quiet"},
            {**about, "metric": "itl_p99_ms", "value": busy, "unit": "ms", "phase": "prefill"},
            {**about, "metric": "ratio", "value": busy / quiet, "unit": "x", "of": "itl p99", "to": "quiet p50"},
            {**about, "metric": "ttft_ms", "value": alone, "unit": "ms", "phase": "alone"},
            {**about, "metric": "ttft_ms", "value": beside, "unit": "ms", "phase": "beside"},
            {**about, "metric": "ratio", "value": alone / beside, "unit": "x", "of": "rate beside", "to": "rate alone"},
        ]
    return rows


def _measure(loaded: LoadedModel, seed: int) -> tuple[float, float, float, float]:
    rng = np.random.default_rng(seed)
    vocabulary = min(1000, loaded.vocab_size)
    short = rng.integers(3, vocabulary, (OTHERS, SHORT)).tolist()
    long = rng.integers(3, vocabulary, LONG).tolist()
    times = TimesByRequest()
    with Decoder(loaded, "paged", recorder=times) as decoder:
        alone = decoder.generate(long, max_tokens=1).ttft_ms
    with Decoder(loaded, "paged", recorder=times) as decoder:
        times.of.clear()
        processors = [no_end(loaded)]
        others = [decoder.submit(prompt, max_tokens=20_000, logits_processors=processors) for prompt in short]
        _wait(times, others[-1].request, QUIET)
        start = max(seen[0] for seen in times.of.values())
        began = max(seen[-1] for seen in times.of.values())
        done = decoder.generate(long, max_tokens=1, logits_processors=processors)
        ended = times.of[done.request][0]
        after = len(times.of[others[-1].request])
        _wait(times, others[-1].request, after + QUIET)
        busy = _gaps(times, others, began, ended)
        quiet = _gaps(times, others, start, began)
        quiet += _gaps(times, others, times.of[others[-1].request][after], float("inf"))
        for stream in others:
            stream.cancel()
    return statistics.median(quiet), float(np.percentile(busy, 99)), alone, done.ttft_ms


def _wait(times: TimesByRequest, request: int, tokens: int) -> None:
    while len(times.of.get(request, ())) < tokens:
        time.sleep(0.005)


def _gaps(times: TimesByRequest, streams: list[Any], start: float, end: float) -> list[float]:
    """Milliseconds between tokens of these streams within a span of time."""
    gaps: list[float] = []
    for stream in streams:
        seen = [t for t in list(times.of[stream.request]) if start <= t <= end]
        gaps += [1e3 * (b - a) for a, b in zip(seen, seen[1:], strict=False)]
    return gaps
