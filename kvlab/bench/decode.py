"""Many sequences at once: kvlab's live caches against mlx-lm's own, in the same BatchGenerator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from kvlab.backends import device
from kvlab.bench.models import random_qwen3
from kvlab.bench.request_times import TokenTimes, no_end, random_prompt
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.bench.speed import ModelSpeed, measure_speed
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, ModelSource, load

SHARED = 2048
PRIVATE = 512
RAGGED = (100, 200, 400, 800, 1600, 3000, 5000, 8000)
OWN = 16
"""Tokens of its own behind a shared prefix."""
CASES = (("shared", 1), ("shared", 8), ("shared", 64), ("private", 8), ("ragged", 8))
PREFILL_STEP = 512
LEAST_PROMPT, LEAST_TOKENS = 16, 8
PREFILL_SHARE = 0.4
"""Part of a case's seconds that goes into computing its prompts, for both sides."""
MEMORY_SHARE = 0.3
"""Part of the available memory that mlx-lm's batch may take."""
RESULT = dict[str, Any]


SEQUENCES_A_STEP = 8
"""Sequences that are taken to decode in the time of one: an estimate, to leave out what would take far too long."""
OVERRUN = 1.5
"""Times its share of the budget that the shortest measurement of a case may take, before it is left out."""


@dataclass(frozen=True)
class DecodeMeasurement:
    """One measurement: tokens a second while all sequences decode, most live KV bytes, and the tokens."""

    rate: float
    nbytes: int
    tokens: list[list[int]]


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    cases: Sequence[tuple[str, int]] = CASES,
    tokens: int = 48,
    rounds: int = 3,
    clock: Clock = time.perf_counter,
) -> list[RESULT]:
    """Rows per model (the bundled one or ``model``, and a random-weight Qwen3 of 10M parameters), workload and ``n``.

    ``tokens_per_s`` and ``kv_bytes_live`` of ``paged`` and of mlx-lm, the median ``ratio`` of alternating rounds, the
    ratio of bytes to those of the unique tokens, and ``exact``: the share of sequences with equal tokens. Prompts,
    answers and rounds are as long and as many as ``seconds``, the model's context and memory allow.
    """
    rows: list[RESULT] = []
    with BenchSession("decode", seconds, clock=clock) as session:
        for loaded, seconds_of_model in session.parts([load(model), random_qwen3(seed=seed)]):
            speed = measure_speed(loaded, clock)
            for (workload, n), share in session.parts(cases, seconds_of_model):
                case = Case(loaded, speed, workload, n, tokens, seed)
                if rows and (session.is_over or case.least_seconds > OVERRUN * share):
                    session.skip(case.about, 1, "cases", "time")
                else:
                    rows += _measure(session, case, rounds, share)
        return rows + session.skipped


@dataclass(frozen=True)
class Case:
    """What is measured: ``n`` sequences of a workload, which answer in ``tokens`` each."""

    loaded: LoadedModel
    speed: ModelSpeed
    workload: str
    n: int
    tokens: int
    seed: int

    @property
    def about(self) -> dict[str, Any]:
        return {"workload": self.workload, "n": self.n, "model": self.loaded.name}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt, a shared prefix left out, as they are wanted."""
        if self.workload == "shared":
            return [SHARED]
        kinds = RAGGED if self.workload == "ragged" else (PRIVATE,)
        return [kinds[i % len(kinds)] for i in range(self.n)]

    @property
    def least_seconds(self) -> float:
        """Seconds of the shortest measurement there is: two rounds of both sides, with the fewest tokens."""
        prompts = 2 * sum(min(length, LEAST_PROMPT) for length in self.lengths) * self.speed.prompt_token_s
        steps = 4 * min(self.tokens, LEAST_TOKENS) * self.speed.step_s
        return prompts + steps * max(1.0, self.n / SEQUENCES_A_STEP)

    def fitted(self, session: BenchSession, seconds: float) -> list[int]:
        """The same, as long as ``seconds`` for both sides, memory and the model's context allow."""
        wanted, about = self.lengths, self.about
        longest = (self.loaded.context_length or max(wanted) + OWN + self.tokens) - OWN - self.tokens
        cut = [min(length, longest) for length in wanted]
        session.cut(sum(wanted), sum(cut), "prompt tokens", "context", about)
        # mlx-lm holds a batch as wide as its longest sequence, and twice that while it is put together.
        batch = 2 * self.n * (max(cut) + OWN + self.tokens) * self.speed.kv_bytes
        memory = min(1.0, MEMORY_SHARE * device.available_bytes() / batch)
        affordable = min(1.0, PREFILL_SHARE * seconds / (2 * sum(cut) * self.speed.prompt_token_s))
        share = min(memory, affordable)
        fitted = [max(min(length, LEAST_PROMPT), int(length * share)) for length in cut]
        session.cut(sum(cut), sum(fitted), "prompt tokens", "memory" if memory < affordable else "time", about)
        return fitted


def _measure(session: BenchSession, case: Case, rounds: int, seconds: float) -> list[RESULT]:
    started = session.clock()
    loaded, n, about = case.loaded, case.n, case.about
    lengths = case.fitted(session, seconds)
    prompts = _prompts(case, lengths)
    trunk = lengths[0] if case.workload == "shared" else 0
    runs: dict[str, list[DecodeMeasurement]] = {"paged": [], "mlx-lm": []}
    count = min(case.tokens, LEAST_TOKENS)
    with Decoder(
        loaded, "paged", max_concurrency=max(n, 8), prefill_step=PREFILL_STEP, recorder=(sink := TokenTimes()), retain=0
    ) as ours:
        # The store then knows the prompts, and mlx-lm gets their KV as well: only decoding is compared.
        session.show(f"{case.workload} n={n} of {loaded.name}: prompts")
        ready = [_computed(loaded, prompt) for prompt in ([prompts[0][:trunk]] if trunk else [p[:-1] for p in prompts])]
        ways = {
            "paged": lambda count: _ours(ours, sink, prompts, count),
            "mlx-lm": lambda count: _theirs(loaded, prompts, ready, count),
        }
        for number in session.rounds(rounds, seconds - (session.clock() - started), about):
            before = session.clock()
            measured = {name: ways[name](count) for name in sorted(ways, reverse=bool(number % 2))}
            if number:
                for name, one in measured.items():
                    runs[name].append(one)
                continue
            step_s = sum(n / one.rate for one in measured.values())
            left = (seconds - (session.clock() - started)) / rounds
            # The first round has computed the prompts under paged; the others only begin with them.
            left -= max(0.0, min(left / 2, session.clock() - before - count * step_s))
            count = session.fit(case.tokens, left, step_s, least=count, about=about, unit="answer tokens")
    per_token = sum(cache.nbytes / cache.keys.shape[2] for cache in ready[0])
    unique = per_token * (trunk + sum(len(prompt) - trunk + count for prompt in prompts))
    rows: list[RESULT] = []
    for name, several in runs.items():
        who = {**about, "policy": name}
        nbytes = max(one.nbytes for one in several)
        rate = statistics.median(one.rate for one in several)
        rows += [
            {**who, "metric": "tokens_per_s", "value": rate, "unit": "tokens/s"},
            {**who, "metric": "kv_bytes_live", "value": nbytes, "unit": "bytes"},
            {**who, "metric": "ratio", "value": nbytes / unique, "unit": "x", "of": "live bytes", "to": "unique bytes"},
        ]
    ratio = statistics.median(a.rate / b.rate for a, b in zip(runs["paged"], runs["mlx-lm"], strict=True))
    equal = statistics.mean(a == b for a, b in zip(runs["paged"][-1].tokens, runs["mlx-lm"][-1].tokens, strict=True))
    return [
        *rows,
        {**about, "policy": "paged", "metric": "ratio", "value": ratio, "unit": "x", "of": "paged", "to": "mlx-lm"},
        {**about, "policy": "paged", "metric": "exact", "value": equal, "unit": "share"},
    ]


def _ours(decoder: Decoder, sink: TokenTimes, prompts: list[list[int]], tokens: int) -> DecodeMeasurement:
    sink.by_request.clear()
    processors = [no_end(decoder.loaded)]
    streams = [decoder.submit(prompt, max_tokens=tokens, logits_processors=processors) for prompt in prompts]
    most = 0
    while not streams[-1].done:
        most = max(most, decoder.live_bytes())
        time.sleep(0.02)
    answers = [list(stream.result().tokens) for stream in streams]
    return DecodeMeasurement(_rate(list(sink.by_request.values())), most, answers)


def _theirs(loaded: LoadedModel, prompts: list[list[int]], ready: list[Any], tokens: int) -> DecodeMeasurement:
    """mlx-lm's generator on caches that hold the prompts' beginnings: one for all, or one each."""
    generator = BatchGenerator(
        loaded.model,
        completion_batch_size=max(len(prompts), 8),
        prefill_batch_size=8,
        prefill_step_size=PREFILL_STEP,
    )
    caches = [_copy(ready[0] if len(ready) == 1 else ready[i]) for i in range(len(prompts))]
    held = [cache[0].offset for cache in caches]
    uids = generator.insert(
        [prompt[have:] for prompt, have in zip(prompts, held, strict=True)],
        max_tokens=[tokens] * len(prompts),
        caches=caches,
        all_tokens=[prompt[:have] for prompt, have in zip(prompts, held, strict=True)],
        logits_processors=[[no_end(loaded)] for _ in prompts],
    )
    times: dict[int, list[float]] = {uid: [] for uid in uids}
    answers: dict[int, list[int]] = {uid: [] for uid in uids}
    most = 0
    while any(len(seen) < tokens for seen in times.values()):
        responses = generator.next()[1]
        now = time.perf_counter()
        most = max(most, sum(cache.nbytes for cache in generator._generation_batch.prompt_cache))
        for response in responses:
            times[response.uid].append(now)
            answers[response.uid].append(response.token)
    generator.close()
    return DecodeMeasurement(_rate(list(times.values())), most, [answers[uid] for uid in uids])


def _rate(times: list[list[float]]) -> float:
    """Tokens a second while all sequences were decoding; where they never were, over the whole time."""
    start, end = max(seen[0] for seen in times), min(seen[-1] for seen in times)
    if end <= start:
        start, end = min(seen[0] for seen in times), max(seen[-1] for seen in times)
    return sum(start < t <= end for seen in times for t in seen) / (end - start)


def _prompts(case: Case, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(case.seed)
    if case.workload == "shared":
        trunk = random_prompt(case.loaded, rng, lengths[0])
        return [trunk + random_prompt(case.loaded, rng, OWN) for _ in range(case.n)]
    return [random_prompt(case.loaded, rng, length) for length in lengths]


def _computed(loaded: LoadedModel, tokens: list[int]) -> list[Any]:
    """mlx-lm's caches after ``tokens``."""
    caches = make_prompt_cache(loaded.model)
    for at in range(0, len(tokens), PREFILL_STEP):
        loaded.model(mx.array([tokens[at : at + PREFILL_STEP]]), cache=caches)
        mx.eval([cache.state for cache in caches])
    return caches


def _copy(caches: list[Any]) -> list[Any]:
    return [type(cache).from_state(cache.state) for cache in caches]
