"""What requests cost here: prompts by length, restores by tier, and writes, as ``kvlab replay --cost`` reads them."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.bench.request_times import random_prompt
from kvlab.bench.restore import RestoredBytes
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.bench.speed import measure_speed
from kvlab.decoder import Completion, Decoder
from kvlab.models import LoadedModel, ModelSource, load
from kvlab.policies import format_bytes
from kvlab.speed import Speed, fitted
from kvlab.store import Namespace, Store, StoreConfig
from kvlab.store.ssd.tier import SsdConfig
from kvlab.tiers import RAM, SSD

LONGEST, LEAST = 4096, 256
"""Tokens of the longest prompt, and of the shortest one that still counts as the longest."""
SHARES, CHECKED = (0.125, 0.25, 0.5, 1.0), 0.75
"""Lengths of cold prompts, as shares of the longest; and that of one that only checks what they say."""
RESTORED = (0.25, 1.0)
PREFILLS = 12
"""What a round takes, in prefills of the longest prompt by its first tokens' rate; attention is half of it."""
SAID_TOKENS, BLOCK_TOKENS = 16, 64


@dataclass
class Samples:
    """What rounds measured: seconds by prompt tokens, and by bytes restored from each tier."""

    cold: dict[int, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    restored: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    first_token: dict[str, list[float]] = field(default_factory=dict)
    written: list[float] = field(default_factory=list)

    def prompts(self, without: int) -> list[tuple[int, float]]:
        """Return the median of each length but one."""
        return [(tokens, statistics.median(taken)) for tokens, taken in sorted(self.cold.items()) if tokens != without]


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    rounds: int = 3,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows of the cost of a request with ``model``, medians over ``rounds``, as :func:`kvlab.speed.read_speed` reads.

    Prompts of several lengths are computed by kvlab's decoder without reuse; the same prompts are restored from RAM and
    from SSD, each by the decoder, too. ``ratio`` rows: the wait for the first token of the longest prompt, restored
    beside computed; and what the fitted curve says of a length that it was not fitted to, beside the measured wait.
    Files are read from the drive where the operating system can be asked to forget them (Linux), else maybe from
    its memory; ``page_cache`` says which.
    """
    loaded = load(model)
    about = {"policy": "tiered", "workload": "cost", "model": loaded.name}
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-bench-") as folder,
        BenchSession("cost", seconds, clock=clock) as session,
    ):
        found = measure_speed(loaded, session.clock)
        longest = session.cut(LONGEST, (loaded.context_length or LONGEST) - SAID_TOKENS, "tokens", "context", about)
        each_s = PREFILLS * (rounds + 1) * found.prompt_token_s
        longest = session.fit(longest, seconds, each_s, least=LEAST, about=about, unit="prompt tokens")
        samples, checked = Samples(), int(CHECKED * longest)
        for number in session.rounds(rounds, seconds, about):
            own = Samples() if not number else samples
            place, draw = Path(folder) / str(number), np.random.default_rng(seed + number)
            _compute(loaded, draw, longest, own)
            for share in RESTORED:
                _restore(loaded, draw, int(share * longest), round(found.kv_bytes), place / f"{share:g}", own)
            own.written.append(_write(place / "written", max(int(longest * found.kv_bytes), 1 << 20), seed))
        speed = speed_of(samples, checked, token_bytes=round(found.kv_bytes), source=loaded.name)
        return [*_rows(about, speed), *_ratios(about, samples, speed, checked), *session.skipped]


def speed_of(samples: Samples, checked: int, *, token_bytes: int, source: str) -> Speed:
    """Fit a speed to samples; the prompts of ``checked`` tokens are left out."""
    base, token, token2 = fitted(samples.prompts(checked))
    token = max(token, 1e-9)
    restore, ram, ssd = _fitted_restores(samples)
    return Speed(
        token,
        statistics.median(samples.steps),
        base,
        token2,
        memory=1 / ram,
        ssd=1 / ssd,
        write=statistics.median(samples.written),
        restore_s=restore,
        token_bytes=token_bytes,
        source=source,
    )


def _fitted_restores(samples: Samples) -> tuple[float, float, float]:
    """Return the seconds of a restore besides its bytes, and those of a byte from RAM and from SSD."""
    medians = [(tier, size, statistics.median(taken)) for (tier, size), taken in samples.restored.items()]
    taken = np.array([seconds for *_, seconds in medians])
    columns = [np.ones(len(taken))] + [
        np.array([size if tier == name else 0.0 for tier, size, _ in medians]) for name in (RAM.name, SSD.name)
    ]
    for used in (columns, columns[1:]):
        found, *_ = np.linalg.lstsq(np.stack(used, axis=1) / taken[:, None], np.ones(len(taken)), rcond=None)
        if (found > 0).all():
            break
    base = float(found[0]) if len(found) == len(columns) else 0.0
    ram, ssd = (max(float(value), 1e-15) for value in found[-2:])
    return base, ram, ssd


# -- one round --------------------------------------------------------------------------------------------------------


def _compute(loaded: LoadedModel, draw: Any, longest: int, samples: Samples) -> None:
    with Decoder(loaded, "full") as decoder:
        for share in (*SHARES, CHECKED):
            said = SAID_TOKENS if share == SHARES[0] else 1
            done = decoder.generate(random_prompt(loaded, draw, int(share * longest)), max_tokens=said)
            samples.cold.setdefault(done.prompt_tokens, []).append(done.ttft_ms / 1e3)
            if len(done.tokens) > 1:
                samples.steps.append(done.tpot_ms / 1e3)
        if not samples.steps:  # the model ended its answers at once
            samples.steps.append(measure_speed(loaded).step_s)


def _restore(loaded: LoadedModel, draw: Any, tokens: int, token_bytes: int, folder: Path, samples: Samples) -> None:
    """Compute and store a prompt, then restore it from RAM, and in a new decoder from SSD."""
    prompt, room = random_prompt(loaded, draw, tokens), format_bytes(4 * tokens * max(token_bytes, 1) + (64 << 20))
    policy, size = f"tiered:ram={room},ssd={room},dir={folder}", RestoredBytes()
    with Decoder(loaded, policy, recorder=size, retain=0) as decoder:
        decoder.generate(prompt, max_tokens=1)
        _note(samples, RAM.name, decoder.generate(prompt, max_tokens=1), size.bytes)
    forget_pages(folder)
    size = RestoredBytes()
    with Decoder(loaded, policy, recorder=size, retain=0) as decoder:
        _note(samples, SSD.name, decoder.generate(prompt, max_tokens=1), size.bytes)


def _note(samples: Samples, tier: str, done: Completion, size: int) -> None:
    if size:
        samples.restored.setdefault((tier, size), []).append((done.lookup_ms + done.restore_ms) / 1e3)
        samples.first_token.setdefault(f"{tier} {done.prompt_tokens}", []).append(done.ttft_ms / 1e3)


def _write(folder: Path, size: int, seed: int) -> float:
    """Return the bytes a second at which a store writes, and makes durable, so many bytes of KV."""
    payload = {"0:k": np.random.default_rng(seed).standard_normal((8, BLOCK_TOKENS, 128), dtype=np.float32)}
    block = payload["0:k"].nbytes
    count = max(1, size // block)
    config = StoreConfig(
        BLOCK_TOKENS, 2 * count * block, below=(SsdConfig(folder, 4 * count * block),), write="snapshot"
    )
    with Store(config) as store:
        store.put(Namespace("cost", "", "float32", BLOCK_TOKENS), np.arange(count * BLOCK_TOKENS), 0, [payload] * count)
        started = time.perf_counter()
        store.flush()
        return count * block / (time.perf_counter() - started)


def forget_pages(folder: Path) -> bool:
    """Ask the operating system to forget what it read of a folder's files; return whether it can be asked."""
    advise: Any = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                advise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


# -- rows -------------------------------------------------------------------------------------------------------------


def _rows(about: dict[str, Any], speed: Speed) -> list[dict[str, Any]]:
    pages = {"page_cache": "forgotten" if hasattr(os, "posix_fadvise") else "as it was"}
    return [
        {**about, "metric": "prefill_tokens_per_s", "value": 1 / speed.token_s, "unit": "tokens/s"},
        {**about, "metric": "attention_share", "value": 2 * speed.token2_s / speed.token_s, "unit": "of a token"},
        {**about, "metric": "decode_tokens_per_s", "value": 1 / speed.step_s, "unit": "tokens/s"},
        {**about, "metric": "latency_s", "value": speed.base_s, "unit": "s"},
        {**about, "metric": "restore_latency_s", "value": speed.restore_s, "unit": "s"},
        {**about, "metric": "restore_bytes_per_s", "value": speed.memory, "unit": "B/s", "tier": RAM.name},
        {**about, "metric": "restore_bytes_per_s", "value": speed.ssd, "unit": "B/s", "tier": SSD.name, **pages},
        {**about, "metric": "written_bytes_per_s", "value": speed.write, "unit": "B/s"},
        {**about, "metric": "kv_bytes_per_token", "value": speed.token_bytes, "unit": "bytes"},
    ]


def _ratios(about: dict[str, Any], samples: Samples, speed: Speed, checked: int) -> list[dict[str, Any]]:
    longest = max(samples.cold)
    cold = statistics.median(samples.cold[longest])
    ratio = {**about, "metric": "ratio", "unit": "x", "tokens": longest}
    rows = []
    for tier in (RAM.name, SSD.name):
        if taken := samples.first_token.get(f"{tier} {longest}"):
            rows.append(
                {**ratio, "value": statistics.median(taken) / cold, "of": f"restored from {tier}", "to": "computed"}
            )
    said, seen = speed.base_s + speed.prefill(0, checked), statistics.median(samples.cold[checked])
    return [*rows, {**ratio, "tokens": checked, "value": said / seen, "of": "predicted", "to": "measured"}]
