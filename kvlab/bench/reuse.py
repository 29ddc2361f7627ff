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

from kvlab.caches import own_caches
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.policies import Policy
from kvlab.workloads import load_workload

TURNS = 15
POLICY = "tiered"


def run(*, model: str | None = None, seed: int = 0, conversations: int = 15) -> list[dict[str, Any]]:
    """Rows of the last turn of ``agent`` conversations: ``ttft_ms`` under ``tiered`` and on a live sequence, medians;
    the median ``ratio`` conversation by conversation; and ``cached_tokens`` short of the earlier prompt, at worst.

    The live sequence is measured twice: ``never released`` in the same BatchGenerator on a thread of its own, so that
    the ratio shows what finding and restoring KV adds; ``bare loop`` with mlx-lm's cache and model and nothing else.
    """
    loaded = load(model)
    ways: dict[str, Callable[[LoadedModel, list[int], int], float]] = {
        "never released": _in_generator,
        "bare loop": _in_bare_loop,
    }
    times: dict[str, list[float]] = {name: [] for name in (POLICY, *ways)}
    short = 0
    folder = tempfile.TemporaryDirectory(prefix="kvlab-bench-")
    with folder as name, Decoder(loaded, f"{POLICY}:dir={name}") as decoder:
        for one in range(conversations + 1):
            requests = load_workload("agent", turns=TURNS, seed=seed + one).requests()
            before: list[int] = []
            for request in requests:
                prompt = loaded.render(list(request.messages), list(request.tools))
                done = decoder.generate(prompt, max_tokens=request.max_tokens)
                short = max(short, len(before) - done.cached_tokens)
                before = prompt
            live = {way: measure(loaded, prompt, done.cached_tokens) for way, measure in ways.items()}
            if one:  # the first conversation warms up
                times[POLICY].append(done.ttft_ms)
                for way, value in live.items():
                    times[way].append(value)
    about = {"workload": "agent", "turn": TURNS, "model": loaded.name, "metric": "ttft_ms", "unit": "ms"}
    rows: list[dict[str, Any]] = [{**about, "policy": way, "value": statistics.median(ms)} for way, ms in times.items()]
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(times[POLICY], times[way], strict=True))
        named = {"metric": "ratio", "value": ratio, "unit": "x", "of": POLICY, "to": way}
        rows.append({**about, "policy": POLICY, **named})
    missing = {"metric": "uncached_of_earlier_prompt", "value": short, "unit": "tokens"}
    return [*rows, {**about, "policy": POLICY, **missing}]


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
