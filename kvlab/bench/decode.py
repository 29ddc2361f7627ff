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
from tqdm.auto import tqdm

from kvlab.bench.models import random_qwen3
from kvlab.bench.overhead import no_end
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.recording import events

SHARED = 2048
PRIVATE = 512
RAGGED = (100, 200, 400, 800, 1600, 3000, 5000, 8000)
OWN = 16
"""Tokens of its own behind a shared prefix."""
CASES = (("shared", 1), ("shared", 8), ("shared", 64), ("private", 8), ("ragged", 8))
PREFILL_STEP = 512
RESULT = dict[str, Any]


@dataclass(frozen=True)
class DecodeMeasurement:
    """One measurement: tokens a second while all sequences decode, most live KV bytes, and the tokens."""

    rate: float
    nbytes: int
    tokens: list[list[int]]


def run(
    *,
    model: str | None = None,
    seed: int = 0,
    cases: Sequence[tuple[str, int]] = CASES,
    tokens: int = 48,
    rounds: int = 3,
) -> list[RESULT]:
    """Rows per model (the bundled one or ``model``, and a random-weight Qwen3 of 10M parameters), workload and ``n``.

    ``tokens_per_s`` and ``kv_bytes_live`` of ``paged`` and of mlx-lm, the median ``ratio`` of alternating rounds, the
    ratio of bytes to those of the unique tokens, and ``exact``: the share of sequences with equal tokens.
    """
    rows: list[RESULT] = []
    loadeds = [load(model), random_qwen3(seed=seed)]
    with tqdm(total=len(loadeds) * len(cases) * (rounds + 1), desc="bench decode", unit="round") as bar:
        for loaded in loadeds:
            for workload, n in cases:
                bar.set_postfix_str(f"{loaded.name} {workload} n={n}")
                rows += _case(loaded, workload, n, tokens, rounds, seed, bar)
    return rows


def _case(loaded: LoadedModel, workload: str, n: int, tokens: int, rounds: int, seed: int, bar: Any) -> list[RESULT]:
    prompts = _prompts(loaded, workload, n, seed)
    runs: dict[str, list[DecodeMeasurement]] = {"paged": [], "mlx-lm": []}
    with Decoder(
        loaded, "paged", max_concurrency=max(n, 8), prefill_step=PREFILL_STEP, recorder=(sink := TokenTimes()), retain=0
    ) as ours:
        # The store then knows the prompts, and mlx-lm gets their KV as well: only decoding is compared.
        ready = [_computed(loaded, prompt[:-1]) for prompt in _distinct(prompts, workload)]
        for round_ in range(rounds + 1):
            for name in sorted(runs, reverse=bool(round_ % 2)):
                measured = (
                    _ours(ours, sink, prompts, tokens)
                    if name == "paged"
                    else _theirs(loaded, prompts, ready, workload, tokens)
                )
                if round_:  # the first round warms up
                    runs[name].append(measured)
            bar.update()
    per_token = ready[0][0].keys[..., :1, :].nbytes * 2 * loaded.n_layers
    shared = SHARED if workload == "shared" else 0
    unique = per_token * (shared + sum(len(prompt) - shared + tokens for prompt in prompts))
    about = {"workload": workload, "n": n, "model": loaded.name}
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


class TokenTimes:
    """Keeps when tokens came, by request."""

    def __init__(self) -> None:
        self.times: dict[int, list[float]] = {}

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.FirstToken | events.Token):
            self.times.setdefault(event.request, []).append(event.t)


def _ours(decoder: Decoder, sink: TokenTimes, prompts: list[list[int]], tokens: int) -> DecodeMeasurement:
    sink.times.clear()
    processors = [no_end(decoder.loaded)]
    streams = [decoder.submit(prompt, max_tokens=tokens, logits_processors=processors) for prompt in prompts]
    most = 0
    while not streams[-1].done:
        most = max(most, decoder.live_bytes())
        time.sleep(0.02)
    answers = [list(stream.result().tokens) for stream in streams]
    return DecodeMeasurement(_rate(list(sink.times.values())), most, answers)


def _theirs(
    loaded: LoadedModel, prompts: list[list[int]], ready: list[Any], workload: str, tokens: int
) -> DecodeMeasurement:
    generator = BatchGenerator(
        loaded.model,
        completion_batch_size=max(len(prompts), 8),
        prefill_batch_size=8,
        prefill_step_size=PREFILL_STEP,
    )
    caches = [_copy(ready[0] if workload == "shared" else ready[i]) for i in range(len(prompts))]
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


def _prompts(loaded: LoadedModel, workload: str, n: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    vocabulary = min(1000, loaded.vocab_size)

    def draw(count: int) -> list[int]:
        return rng.integers(3, vocabulary, count).tolist()

    if workload == "shared":
        trunk = draw(SHARED)
        return [trunk + draw(OWN) for _ in range(n)]
    lengths = RAGGED if workload == "ragged" else (PRIVATE,)
    return [draw(lengths[i % len(lengths)]) for i in range(n)]


def _distinct(prompts: list[list[int]], workload: str) -> list[list[int]]:
    return [prompts[0][: SHARED + 1]] if workload == "shared" else prompts


def _computed(loaded: LoadedModel, tokens: list[int]) -> list[Any]:
    """mlx-lm's caches after ``tokens``."""
    caches = make_prompt_cache(loaded.model)
    for at in range(0, len(tokens), PREFILL_STEP):
        loaded.model(mx.array([tokens[at : at + PREFILL_STEP]]), cache=caches)
        mx.eval([cache.state for cache in caches])
    return caches


def _copy(caches: list[Any]) -> list[Any]:
    return [type(cache).from_state(cache.state) for cache in caches]
