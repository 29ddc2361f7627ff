"""The decoder under policy full, against bare mlx-lm in the same BatchGenerator."""

from __future__ import annotations

import statistics
import time
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load

PREFILL_STEP = 512


def run(
    *, model: str | None = None, seed: int = 0, ns: tuple[int, ...] = (1, 8), tokens: int = 192, rounds: int = 9
) -> list[dict[str, Any]]:
    """Rows per concurrency: ``tokens_per_s`` of both while decoding (medians), and the median ``ratio`` of the rounds.

    Each round measures both, in alternating order, on the same prompts of 256 random tokens.
    """
    loaded = load(model)
    rows: list[dict[str, Any]] = []
    for n in ns:
        rng = np.random.default_rng(seed)
        prompts = rng.integers(0, min(1000, loaded.tokenizer.vocab_size), (n, 256)).tolist()
        rates: dict[str, list[float]] = {"full": [], "mlx-lm": []}
        with Decoder(loaded, "full", max_concurrency=max(n, 8), prefill_step=PREFILL_STEP) as decoder:
            for round_ in range(rounds + 1):
                for name in sorted(rates, reverse=bool(round_ % 2)):
                    rate = _ours(decoder, prompts, tokens) if name == "full" else _bare(loaded, prompts, tokens)
                    if round_:  # the first round warms up
                        rates[name].append(rate)
        about = {"policy": "full", "workload": "overhead", "n": n}
        rows += [
            {**about, "metric": "tokens_per_s", "value": statistics.median(values), "unit": "tokens/s", "library": name}
            for name, values in rates.items()
        ]
        ratios = [a / b for a, b in zip(rates["full"], rates["mlx-lm"], strict=True)]
        ratio = {"metric": "ratio", "value": statistics.median(ratios), "unit": "x", "of": "full", "to": "mlx-lm"}
        rows.append({**about, **ratio})
    return rows


def _ours(decoder: Decoder, prompts: list[list[int]], tokens: int) -> float:
    """Decoded tokens a second through the decoder, all sequences together."""
    # No end token: every sequence decodes to the same length.
    processors = [no_end(decoder.loaded)]
    streams = [decoder.submit(prompt, max_tokens=tokens, logits_processors=processors) for prompt in prompts]
    return sum(1e3 / stream.result().tpot_ms for stream in streams)


def _bare(loaded: LoadedModel, prompts: list[list[int]], tokens: int) -> float:
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


def no_end(loaded: LoadedModel) -> Any:
    """A logits processor under which the model never ends its answer."""
    ends = mx.array(sorted(loaded.eos))

    def process(_: mx.array, logits: mx.array) -> mx.array:
        logits[:, ends] = -mx.inf
        return logits

    return process
