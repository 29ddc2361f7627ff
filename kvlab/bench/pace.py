"""A long prompt beside decoding sequences: how long they wait for their tokens, and how fast it gets on."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvlab.bench.models import random_qwen3
from kvlab.bench.request_times import TokenTimes, no_end, random_prompt
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.bench.speed import measure_speed
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, ModelSource, load

LONG, LEAST_LONG = 8000, 256
OTHERS = 8
SHORT = 64
QUIET, LEAST_QUIET = 60, 12
"""Steps without the long prompt, before it and after."""
STEP_OF_OTHERS = 3
"""What a step of all others takes, in steps of one sequence, about."""
PREFILLS = 5
"""What a round takes, in prefills of the long prompt by its first tokens' rate: alone, and at half the rate beside
others; attention to all that came before makes it longer still."""


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    rounds: int = 3,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows per model (bundled or ``model``, and a random-weight Qwen3 of 10M parameters): ``itl_p50_ms`` of 8 sequences
    that decode undisturbed, before and after their ``itl_p99_ms`` while a prompt of 8,000 tokens is prefilled (they
    grow meanwhile), the ``ratio`` of these; ``ttft_ms`` of that prompt alone and beside them, and the ratio of its
    prefill rates. Medians over ``rounds``. The prompt is shorter, and rounds are fewer, where ``seconds`` or the
    model's context ask for it.
    """
    rows: list[dict[str, Any]] = []
    with BenchSession("pace", seconds, clock=clock) as session:
        for loaded, share in session.parts([load(model), random_qwen3(seed=seed)]):
            rows += _case(session, loaded, rounds, seed, share)
        return rows + session.skipped


@dataclass(frozen=True)
class PaceSizes:
    """Tokens of the long prompt, steps before and after it, and the longest answer of the others."""

    long: int
    quiet: int
    answer: int


def _case(session: BenchSession, loaded: LoadedModel, rounds: int, seed: int, seconds: float) -> list[dict[str, Any]]:
    about = {"policy": "paged", "workload": "long prompt beside 8", "n": OTHERS + 1, "model": loaded.name}
    sizes = _sizes(session, loaded, rounds, seconds, about)
    measured = []
    for number in session.rounds(rounds, seconds, about):
        one = _measure(loaded, sizes, seed + number)
        if number:
            measured.append(one)
    quiet, busy, alone, beside = (statistics.median(column) for column in zip(*measured, strict=True))
    about["tokens"] = sizes.long
    return [
        {**about, "metric": "itl_p50_ms", "value": quiet, "unit": "ms", "phase": "quiet"},
        {**about, "metric": "itl_p99_ms", "value": busy, "unit": "ms", "phase": "prefill"},
        {**about, "metric": "ratio", "value": busy / quiet, "unit": "x", "of": "itl p99", "to": "quiet p50"},
        {**about, "metric": "ttft_ms", "value": alone, "unit": "ms", "phase": "alone"},
        {**about, "metric": "ttft_ms", "value": beside, "unit": "ms", "phase": "beside"},
        {**about, "metric": "ratio", "value": alone / beside, "unit": "x", "of": "rate beside", "to": "rate alone"},
    ]


def _sizes(session: BenchSession, loaded: LoadedModel, rounds: int, seconds: float, about: dict[str, Any]) -> PaceSizes:
    """What fits into ``seconds``, and into the model's context."""
    speed, context = measure_speed(loaded, session.clock), loaded.context_length or 1 << 20
    long = session.cut(LONG, context - 1, "prompt tokens", "context", about)
    each = seconds / (rounds + 1)
    step_s = STEP_OF_OTHERS * speed.step_s
    quiet = session.fit(QUIET, each / 3, 2 * step_s, least=LEAST_QUIET, about=about, unit="quiet steps")
    prefill_s = PREFILLS * speed.prompt_token_s
    long = session.fit(long, each - 2 * quiet * step_s, prefill_s, least=LEAST_LONG, about=about, unit="prompt tokens")
    return PaceSizes(long, quiet, min(20_000, context - SHORT))


def _measure(loaded: LoadedModel, sizes: PaceSizes, seed: int) -> tuple[float, float, float, float]:
    rng = np.random.default_rng(seed)
    short = [random_prompt(loaded, rng, SHORT) for _ in range(OTHERS)]
    long = random_prompt(loaded, rng, sizes.long)
    times = TokenTimes()
    with Decoder(loaded, "paged", recorder=times) as decoder:
        alone = decoder.generate(long, max_tokens=1).ttft_ms
    with Decoder(loaded, "paged", recorder=times) as decoder:
        times.by_request.clear()
        processors = [no_end(loaded)]
        others = [decoder.submit(prompt, max_tokens=sizes.answer, logits_processors=processors) for prompt in short]
        times.wait_for(last := others[-1], sizes.quiet)
        start = max(seen[0] for seen in times.by_request.values())
        began = max(seen[-1] for seen in times.by_request.values())
        done = decoder.generate(long, max_tokens=1, logits_processors=processors)
        ended = times.by_request[done.request][0]
        after = len(times.by_request[last.request])
        times.wait_for(last, after + sizes.quiet)
        busy = _gaps(times, others, began, ended)
        quiet = _gaps(times, others, start, began)
        quiet += _gaps(times, others, min(times.by_request[last.request][after:], default=ended), float("inf"))
        for stream in others:
            stream.cancel()
    return statistics.median(quiet), float(np.percentile(busy, 99)), alone, done.ttft_ms


def _gaps(times: TokenTimes, streams: list[Any], start: float, end: float) -> list[float]:
    """Milliseconds between tokens of these streams within a span of time."""
    gaps: list[float] = []
    for stream in streams:
        seen = [t for t in list(times.by_request[stream.request]) if start <= t <= end]
        gaps += [1e3 * (b - a) for a, b in zip(seen, seen[1:], strict=False)]
    return gaps
