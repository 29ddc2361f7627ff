"""Measures shortly, in kvlab's own decoder, how quick this machine is with a model."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvlab.decoder import Completion, Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.speed import MEMORY_BYTES_PER_S, SSD_BYTES_PER_S, Speed, fitted

SHARES = (0.125, 0.25, 0.5, 1.0)
"""Lengths of cold prompts, as shares of the longest."""
MOST_TOKENS, LEAST_TOKENS = 4096, 256
REPEATS = 3
SAID_TOKENS, SIDE_BY_SIDE = 24, 4


def measured_speed(model: LoadedModel, longest: int, token_bytes: int, *, ssd: float | None = None) -> Speed:
    """Measure cold prompts up to ``longest`` tokens, decode steps, and the restore of KV from SSD.

    ``token_bytes`` are those of KV a token. A given ``ssd``, bytes a second, is taken as it is.
    """
    most = min(MOST_TOKENS, max(LEAST_TOKENS, longest), (model.context_length or MOST_TOKENS) - SAID_TOKENS)
    draw = np.random.default_rng(0)
    ids = [one for one in range(min(model.vocab_size, 2048)) if one not in model.eos]

    def prompt(tokens: int) -> list[int]:
        return [int(one) for one in draw.choice(ids, tokens)]

    with Decoder(model, "full") as decoder:
        decoder.generate(prompt(most // 2), max_tokens=4)  # kernels and memory are warm afterwards
        samples, steps = [], []
        for share in SHARES * REPEATS:
            done = decoder.generate(prompt(int(share * most)), max_tokens=SAID_TOKENS if share == SHARES[0] else 1)
            samples.append((done.prompt_tokens, done.ttft_ms / 1e3))
            steps += [done.tpot_ms / 1e3] if len(done.tokens) > 2 else []
        beside = _step([decoder.submit(prompt(64), max_tokens=SAID_TOKENS).result() for _ in range(1)])
        streams = [decoder.submit(prompt(64), max_tokens=SAID_TOKENS) for _ in range(SIDE_BY_SIDE)]
        together = _step([stream.result() for stream in streams])
    medians = [(n, statistics.median([t for m, t in samples if m == n])) for n in dict.fromkeys(n for n, _ in samples)]
    base, token, token2 = fitted(medians)
    step = statistics.median(steps) if steps else beside
    more = max(0.0, together - beside) / (SIDE_BY_SIDE - 1)
    read, copied = _restores(model, prompt(most), token_bytes)
    return Speed(
        max(token, 1e-9), step, base, token2, more, ssd or read, copied, source=f"measured here with {model.name}"
    )


def _step(done: Sequence[Completion]) -> float:
    return statistics.median(one.tpot_ms / 1e3 for one in done)


def _restores(model: LoadedModel, prompt: Sequence[int], token_bytes: int) -> tuple[float, float]:
    """Return bytes a second of a prompt's KV that is restored from a folder, and from memory."""
    with tempfile.TemporaryDirectory(prefix="kvlab-advise-") as folder:
        policy = Policy.parse(f"tiered:ram=1GB,ssd=4GB,dir={Path(folder)}")
        with Decoder(model, policy, retain=0) as decoder:
            decoder.generate(prompt, max_tokens=2)
            warm = decoder.generate(prompt, max_tokens=2)
        with Decoder(model, policy, retain=0) as decoder:
            cold = decoder.generate(prompt, max_tokens=2)
    return _rate(cold, token_bytes, SSD_BYTES_PER_S), _rate(warm, token_bytes, MEMORY_BYTES_PER_S)


def _rate(done: Completion, token_bytes: int, otherwise: float) -> float:
    return done.cached_tokens * token_bytes / (done.restore_ms / 1e3) if done.restore_ms > 0 else otherwise
