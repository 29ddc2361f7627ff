"""What the cache adds to a late turn: its TTFT against the same new tokens on a sequence that was never released."""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.workloads import load_workload

TURNS = 15


def run(*, model: str | None = None, seed: int = 0, conversations: int = 7) -> list[dict[str, Any]]:
    """Rows of the last turn of ``agent`` conversations: ``ttft_ms`` under ``tiered`` and on the live sequence, medians;
    the median ``ratio`` conversation by conversation; and ``cached_tokens`` short of the earlier prompt, at worst.
    """
    loaded = load(model)
    ours: list[float] = []
    theirs: list[float] = []
    short = 0
    folder = tempfile.TemporaryDirectory(prefix="kvlab-bench-")
    with folder as name, Decoder(loaded, f"tiered:dir={name}") as decoder:
        for one in range(conversations + 1):
            requests = load_workload("agent", turns=TURNS, seed=seed + one).requests()
            before: list[int] = []
            for request in requests:
                prompt = loaded.render(list(request.messages), list(request.tools))
                done = decoder.generate(prompt, max_tokens=request.max_tokens)
                short = max(short, len(before) - done.cached_tokens)
                before = prompt
            live = _on_live_sequence(loaded, prompt, done.cached_tokens)
            if one:  # the first conversation warms up
                ours.append(done.ttft_ms)
                theirs.append(live)
    about = {"workload": "agent", "turn": TURNS, "model": loaded.name, "metric": "ttft_ms", "unit": "ms"}
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return [
        {**about, "policy": "tiered", "value": statistics.median(ours)},
        {**about, "policy": "never released", "value": statistics.median(theirs)},
        {**about, "policy": "tiered", "metric": "ratio", "value": ratio, "unit": "x", "of": "tiered", "to": "live"},
        {**about, "policy": "tiered", "metric": "uncached_of_earlier_prompt", "value": short, "unit": "tokens"},
    ]


def _on_live_sequence(loaded: LoadedModel, prompt: list[int], have: int) -> float:
    """Milliseconds to the first token when mlx-lm's cache of the first ``have`` tokens is still live."""
    caches = make_prompt_cache(loaded.model)
    for at in range(0, have, 512):
        loaded.model(mx.array([prompt[at : min(at + 512, have)]]), cache=caches)
        mx.eval([cache.state for cache in caches])
    started = time.perf_counter()
    if have < len(prompt) - 1:
        loaded.model(mx.array([prompt[have:-1]]), cache=caches)
        mx.eval([cache.state for cache in caches])
    mx.argmax(loaded.model(mx.array([prompt[-1:]]), cache=caches)[0, -1]).item()
    return 1e3 * (time.perf_counter() - started)
