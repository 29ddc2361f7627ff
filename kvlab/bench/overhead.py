"""The decoder under policy full, against bare mlx-lm: the same BatchGenerator, and for one sequence stream_generate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx_lm
import numpy as np
from mlx_lm.generate import BatchGenerator

from kvlab.bench.request_times import no_end, random_prompt
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, ModelSource, load

PREFILL_STEP = 512
PROMPT = 256
LEAST_TOKENS = 16
"""Shortest answer: below it, a rate says more about the first steps than about decoding."""

Way = Callable[[list[list[int]], int], float]


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    ns: tuple[int, ...] = (1, 8),
    tokens: int = 192,
    rounds: int = 9,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows per concurrency: ``tokens_per_s`` of each way while decoding (medians), and the median ``ratio`` of rounds.

    Each round measures all ways, in alternating order, on the same prompts of 256 random tokens: policy ``full``,
    mlx-lm's BatchGenerator and, for one sequence, its ``stream_generate``. Rounds and answers are as many and as long
    as ``seconds`` allow.
    """
    loaded = load(model)
    rows: list[dict[str, Any]] = []
    with BenchSession("overhead", seconds, clock=clock) as session:
        for n, share in session.parts(ns):
            rows += _case(session, loaded, n, tokens, rounds, seed, share)
        return rows + session.skipped


def _case(
    session: BenchSession, loaded: LoadedModel, n: int, tokens: int, rounds: int, seed: int, seconds: float
) -> list[dict[str, Any]]:
    about = {"policy": "full", "workload": "overhead", "n": n, "model": loaded.name}
    room = loaded.context_length or PROMPT + tokens
    tokens = session.cut(tokens, max(2, room // 2), "answer tokens", "context", about)
    rng = np.random.default_rng(seed)
    prompts = [random_prompt(loaded, rng, min(PROMPT, room - tokens)) for _ in range(n)]
    started, count = session.clock(), min(tokens, LEAST_TOKENS)
    with Decoder(loaded, "full", max_concurrency=max(n, 8), prefill_step=PREFILL_STEP) as decoder:
        ways: dict[str, Way] = {
            "full": lambda prompts, count: _ours(decoder, prompts, count),
            "mlx-lm": lambda prompts, count: _batch_generator(loaded, prompts, count),
        }
        if n == 1:
            ways["stream_generate"] = lambda prompts, count: _stream_generate(loaded, prompts[0], count)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in session.rounds(rounds, seconds, about):
            measured = {name: ways[name](prompts, count) for name in sorted(ways, reverse=bool(number % 2))}
            if number:
                for name, rate in measured.items():
                    rates[name].append(rate)
                continue
            spent = session.clock() - started
            step_s = sum(n / rate for rate in measured.values())  # of all ways together
            left = (seconds - spent) / rounds - max(0.0, spent - count * step_s)
            count = session.fit(tokens, left, step_s, least=count, about=about, unit="answer tokens")
    rows = [
        {**about, "metric": "tokens_per_s", "value": statistics.median(values), "unit": "tokens/s", "library": name}
        for name, values in rates.items()
    ]
    for name in list(rates)[1:]:
        ratio = statistics.median(a / b for a, b in zip(rates["full"], rates[name], strict=True))
        rows.append({**about, "metric": "ratio", "value": ratio, "unit": "x", "of": "full", "to": name})
    return rows


def _ours(decoder: Decoder, prompts: list[list[int]], tokens: int) -> float:
    """Decoded tokens a second through the decoder, all sequences together."""
    # No end token: every sequence decodes to the same length.
    processors = [no_end(decoder.loaded)]
    streams = [decoder.submit(prompt, max_tokens=tokens, logits_processors=processors) for prompt in prompts]
    return sum(1e3 / stream.result().tpot_ms for stream in streams)


def _batch_generator(loaded: LoadedModel, prompts: list[list[int]], tokens: int) -> float:
    """The same with mlx-lm's BatchGenerator alone."""
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in loaded.eos],
        completion_batch_size=max(len(prompts), 8),
        prefill_batch_size=8,
        prefill_step_size=PREFILL_STEP,
    )
    processors = [[no_end(loaded)] for _ in prompts]
    uids = generator.insert(prompts, max_tokens=[tokens] * len(prompts), logits_processors=processors)
    times: dict[int, list[float]] = {uid: [] for uid in uids}
    while any(len(seen) < tokens for seen in times.values()):
        responses = generator.next()[1]
        now = time.perf_counter()
        for response in responses:
            times[response.uid].append(now)
    generator.close()
    return sum((tokens - 1) / (seen[-1] - seen[0]) for seen in times.values())


def _stream_generate(loaded: LoadedModel, prompt: list[int], tokens: int) -> float:
    """The same, for one sequence, with what mlx-lm's users call."""
    steps = mlx_lm.stream_generate(
        loaded.model,
        loaded.tokenizer,
        prompt,
        max_tokens=tokens,
        prefill_step_size=PREFILL_STEP,
        logits_processors=[no_end(loaded)],
    )
    seen = [time.perf_counter() for _ in steps]
    return (len(seen) - 1) / (seen[-1] - seen[0])
