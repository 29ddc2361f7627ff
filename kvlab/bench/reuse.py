"""What the cache adds to a late turn: its TTFT against the same new tokens on a sequence that was never released."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.caches import own_caches
from kvlab.decoder import Decoder
from kvlab.errors import RunError
from kvlab.models import LoadedModel, ModelSource, load
from kvlab.policies import Policy
from kvlab.workloads import load_workload

TURNS = 15
POLICY = "tiered"


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    conversations: int = 15,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows of the last turn of ``agent`` conversations: ``ttft_ms`` under ``tiered`` and on a live sequence, medians;
    the median ``ratio`` conversation by conversation; and ``cached_tokens`` short of the earlier prompt, at worst.

    The live sequence is measured twice: ``never released`` in the same BatchGenerator on a thread of its own, so that
    the ratio shows what finding and restoring KV adds; ``bare loop`` with mlx-lm's cache and model and nothing else.
    Turns that the model's context does not hold are left out, and conversations where ``seconds`` do not suffice.
    """
    loaded = load(model)
    ways: dict[str, Callable[[LoadedModel, list[int], int], float]] = {
        "never released": _in_generator,
        "bare loop": _in_bare_loop,
    }
    times: dict[str, list[float]] = {name: [] for name in (POLICY, *ways)}
    short, turns = 0, TURNS
    about: dict[str, Any] = {"workload": "agent", "model": loaded.name}
    folder = tempfile.TemporaryDirectory(prefix="kvlab-bench-")
    with (
        folder as name,
        BenchSession("reuse", seconds, clock=clock) as session,
        Decoder(loaded, f"{POLICY}:dir={name}") as decoder,
    ):
        for number in session.rounds(conversations, seconds, about):
            served = _turns_that_fit(loaded, seed + number, turns)
            turns = session.cut(turns, len(served), "turns", "context", about)
            before: list[int] = []
            for prompt, max_tokens in served:
                done = decoder.generate(prompt, max_tokens=max_tokens)
                short = max(short, len(before) - done.cached_tokens)
                before = prompt
            live = {way: measure(loaded, before, done.cached_tokens) for way, measure in ways.items()}
            if number:
                times[POLICY].append(done.ttft_ms)
                for way, value in live.items():
                    times[way].append(value)
    about |= {"turn": turns, "metric": "ttft_ms", "unit": "ms"}
    rows: list[dict[str, Any]] = [{**about, "policy": way, "value": statistics.median(ms)} for way, ms in times.items()]
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(times[POLICY], times[way], strict=True))
        named = {"metric": "ratio", "value": ratio, "unit": "x", "of": POLICY, "to": way}
        rows.append({**about, "policy": POLICY, **named})
    missing = {"metric": "uncached_of_earlier_prompt", "value": short, "unit": "tokens"}
    return [*rows, {**about, "policy": POLICY, **missing}, *session.skipped]


def _turns_that_fit(loaded: LoadedModel, seed: int, most: int) -> list[tuple[list[int], int]]:
    """Prompts of one conversation and the longest answer to each, as far as the model's context holds them.

    Raises RunError where not even two fit.
    """
    served: list[tuple[list[int], int]] = []
    for request in load_workload("agent", turns=TURNS, seed=seed).requests()[:most]:
        prompt = loaded.render(list(request.messages), list(request.tools))
        if loaded.context_length is not None and len(prompt) + request.max_tokens > loaded.context_length:
            break
        served.append((prompt, request.max_tokens))
    if len(served) < 2:
        raise RunError(f"the context of {loaded.name} ({loaded.context_length} tokens) is too short for a second turn")
    return served


def _in_generator(loaded: LoadedModel, prompt: list[int], have: int) -> float:
    """Milliseconds from handing the new tokens over to the first token, in mlx-lm's BatchGenerator on a thread."""
    caches = own_caches(loaded.model, Policy.parse(POLICY))
    generator = BatchGenerator(loaded.model, stop_tokens=[[token] for token in loaded.eos])

    def before() -> None:
        _compute(loaded, prompt, 0, have, caches)

    def turn() -> None:
        generator.insert_segments([[prompt[have:]]], max_tokens=[2], caches=[caches], all_tokens=[list(prompt[:have])])
        while not len(batch := generator._generation_batch):
            generator.next()
        batch._next_tokens.item()  # where the decoder takes the first token from, too

    with ThreadPoolExecutor(1) as thread:
        thread.submit(before).result()
        started = time.perf_counter()
        thread.submit(turn).result()
        took = time.perf_counter() - started
        thread.submit(generator.close).result()
    return 1e3 * took


def _in_bare_loop(loaded: LoadedModel, prompt: list[int], have: int) -> float:
    """Milliseconds to the first token when mlx-lm's cache of the first ``have`` tokens is still live."""
    caches = make_prompt_cache(loaded.model)
    _compute(loaded, prompt, 0, have, caches)
    started = time.perf_counter()
    _compute(loaded, prompt, have, len(prompt) - 1, caches)
    mx.argmax(loaded.model(mx.array([prompt[-1:]]), cache=caches)[0, -1]).item()
    return 1e3 * (time.perf_counter() - started)


def _compute(loaded: LoadedModel, prompt: list[int], start: int, end: int, caches: list[Any]) -> None:
    for at in range(start, end, 512):
        loaded.model(mx.array([prompt[at : min(at + 512, end)]]), cache=caches)
        mx.eval([cache.state for cache in caches])
