"""What requests cost here: prompts by length, restores by tier, and writes, as ``kvlab replay --cost`` reads them."""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.bench.request_times import no_end, random_prompt
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.bench.speed import measure_speed
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, ModelSource, load
from kvlab.policies import format_bytes
from kvlab.speed import PREFILL_SHARE, Speed
from kvlab.store import Namespace, Store, StoreConfig
from kvlab.store.ssd.page_cache import forget_pages
from kvlab.store.ssd.tier import SsdConfig
from kvlab.tiers import RAM, SSD

LONGEST, LEAST = 4096, 256
"""Tokens of the longest prompt, and of the shortest one that still counts as the longest."""
SHARES, CHECKED = (0.125, 0.25, 0.5, 1.0), 0.75
"""Lengths of cold prompts, as shares of the longest; and that of one that only checks what they say."""
RESTORED = (0.25, 1.0)
BEHIND = (8, 32, 128)
"""Tokens that are computed behind restored ones, as in a next turn: few at a time take longer each."""
PREFILLS = 12
"""What a round takes, in prefills of the longest prompt by its first tokens' rate; attention is half of it."""
QUICK_ROUNDS = 3
"""Times as many rounds where the longest prompts fit into the time."""
SMALL = 8
"""What is restored from SSD, over the RAM above it."""
SAID_TOKENS, BLOCK_TOKENS = 16, 64
SHORT_PROMPTS = 5
"""Beside an answer: they wait for parts of its steps, which differ."""
LEAST_SHARE = 0.01
CROWD = 3
"""Answers whose steps together say what each further one adds."""
ANSWER = 100_000
"""Tokens of an answer that goes on until it is cancelled."""


@dataclass(frozen=True)
class TimedRequest:
    """Names one request to an idle decoder: bytes restored from RAM and SSD, their tokens, and tokens computed."""

    ram: int
    ssd: int
    start: int
    computed: int

    @property
    def tier(self) -> str:
        """The tier that most was restored from; "" where nothing was."""
        return "" if not self.start else RAM.name if self.ram >= self.ssd else SSD.name


@dataclass
class Samples:
    """What rounds measured: seconds to first tokens, idle and beside an answer, and of steps; and rates of writing."""

    waits: dict[TimedRequest, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    beside: dict[int, list[float]] = field(default_factory=dict)
    crowded_steps: list[float] = field(default_factory=list)

    def note(self, sample: TimedRequest, seconds: float) -> None:
        """Keep the wait of one more request."""
        self.waits.setdefault(sample, []).append(seconds)

    def wait(self, tier: str, tokens: int) -> float | None:
        """Return the median wait of prompts of so many tokens: computed, or but for the fewest restored from a tier."""
        found = [
            seconds
            for one, taken in self.waits.items()
            if one.tier == tier
            and (one.computed == tokens if not tier else one.start + one.computed == tokens + BEHIND[0])
            for seconds in taken
        ]
        return statistics.median(found) if found else None


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
        rounds *= QUICK_ROUNDS if longest == LONGEST else 1  # requests of milliseconds differ more from each other
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
    """Fit a speed to the waits of all requests together; the prompts of ``checked`` tokens are left out."""
    kept = {
        one: statistics.median(taken) for one, taken in samples.waits.items() if one.tier or one.computed != checked
    }
    taken = np.array(list(kept.values()))
    columns = np.array(
        [
            [1, one.computed, (one.start + one.computed) ** 2 - one.start**2, bool(one.tier), one.ram, one.ssd]
            for one in kept
        ],
        np.float64,
    )
    base, token, token2, restore, ram, ssd = not_negative_fit(columns / taken[:, None], needed=(1, 4, 5))
    step = statistics.median(samples.steps)
    crowded = statistics.median(samples.crowded_steps) if samples.crowded_steps else step
    share, busy = _beside(samples, Speed(max(token, 1e-9), token2_s=token2), base)
    return Speed(
        max(token, 1e-9),
        step,
        base,
        token2,
        max(0.0, crowded - step) / (CROWD - 1),
        memory=1 / max(ram, 1e-15),
        ssd=1 / max(ssd, 1e-15),
        write=statistics.median(samples.written),
        restore_s=restore,
        token_bytes=token_bytes,
        prefill_share=share,
        busy_s=busy,
        source=source,
    )


def _beside(samples: Samples, speed: Speed, base_s: float) -> tuple[float, float]:
    """Return the share of its rate that a prompt has beside an answer, and what a request then costs besides."""
    waits = {tokens: statistics.median(taken) for tokens, taken in samples.beside.items()}
    if len(waits) < 2:
        return PREFILL_SHARE, base_s
    short, long = min(waits), max(waits)
    work = speed.prefill(0, long) - speed.prefill(0, short)
    share = min(1.0, max(LEAST_SHARE, work / max(waits[long] - waits[short], 1e-9)))
    return share, max(base_s, waits[short] - speed.prefill(0, short) / share)


def not_negative_fit(columns: np.ndarray, needed: tuple[int, ...]) -> list[float]:
    """Return the factors, none below zero, of columns that sum up to ones as nearly as can be; others are 0.

    Args:
        columns: float64 ``[samples, factors]``, of few factors: every choice of them is tried.
        needed: factors that must not be 0.
    """
    count, best, least = columns.shape[1], np.zeros(columns.shape[1]), np.inf
    others = [one for one in range(count) if one not in needed]
    for size in range(len(others), -1, -1):
        for some in itertools.combinations(others, size):
            chosen = sorted((*needed, *some))
            found, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(columns)), rcond=None)
            error = float(((columns[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(count), error
                best[chosen] = found
    if np.isinf(least):  # noise alone: then each factor is what it explains by itself
        best = np.array([float(np.median(1 / used)) if (used := one[one > 0]).size else 0.0 for one in columns.T])
        best[others] = 0.0
    return [float(value) for value in best]


# -- one round --------------------------------------------------------------------------------------------------------


def _compute(loaded: LoadedModel, draw: Any, longest: int, samples: Samples) -> None:
    with Decoder(loaded, "full") as decoder:
        for share in (*SHARES, CHECKED):
            said = SAID_TOKENS if share == SHARES[0] else 1
            done = decoder.generate(random_prompt(loaded, draw, int(share * longest)), max_tokens=said)
            samples.note(TimedRequest(0, 0, 0, done.prompt_tokens), done.ttft_ms / 1e3)
            if len(done.tokens) > 1:
                samples.steps.append(done.tpot_ms / 1e3)
            if share == SHARES[1]:
                _note_beside(loaded, decoder, draw, done.prompt_tokens, samples)
        if not samples.steps:  # the model ended its answers at once
            samples.steps.append(measure_speed(loaded).step_s)


def _note_beside(loaded: LoadedModel, decoder: Decoder, draw: Any, tokens: int, samples: Samples) -> None:
    """Compute prompts, short ones and one of ``tokens``, while an answer is decoded."""
    stream = decoder.submit(
        random_prompt(loaded, draw, SAID_TOKENS), max_tokens=ANSWER, logits_processors=[no_end(loaded)]
    )
    next(iter(stream))
    for length in (*[SAID_TOKENS] * SHORT_PROMPTS, tokens):
        done = decoder.generate(random_prompt(loaded, draw, length), max_tokens=1)
        if not stream.done:
            samples.beside.setdefault(length, []).append(done.ttft_ms / 1e3)
    others = [
        decoder.submit(
            random_prompt(loaded, draw, SAID_TOKENS), max_tokens=2 * SAID_TOKENS, logits_processors=[no_end(loaded)]
        )
        for _ in range(CROWD - 1)
    ]
    last = [other.result() for other in others][-1]
    if not stream.done:
        samples.crowded_steps.append(statistics.median(last.itl_ms) / 1e3)
    stream.cancel()


def _restore(loaded: LoadedModel, draw: Any, tokens: int, token_bytes: int, folder: Path, samples: Samples) -> None:
    """Compute and store a prompt; restore it from RAM, and in new decoders from SSD, and compute some tokens behind."""
    prompt, size = random_prompt(loaded, draw, tokens), tokens * max(token_bytes, 1)
    folder_options = f"ssd={format_bytes(4 * size + (64 << 20))},dir={folder}"
    with Decoder(loaded, f"tiered:ram={format_bytes(4 * size + (64 << 20))},{folder_options}", retain=0) as decoder:
        decoder.generate(prompt, max_tokens=1)
        for more in BEHIND:
            _note(samples, decoder, [*prompt, *random_prompt(loaded, draw, more)], token_bytes)
    # RAM that holds little: what is read again is kept there, and others leave for it, as where much is on SSD.
    with Decoder(
        loaded, f"tiered:ram={format_bytes(max(size // SMALL, 1 << 20))},{folder_options}", retain=0
    ) as decoder:
        decoder.generate(random_prompt(loaded, draw, SAID_TOKENS), max_tokens=1)  # the first one is slower
        for more in BEHIND:
            forget_folder(folder)
            _note(samples, decoder, [*prompt, *random_prompt(loaded, draw, more)], token_bytes)


def _note(samples: Samples, decoder: Decoder, prompt: list[int], token_bytes: int) -> None:
    done = decoder.generate(prompt, max_tokens=1)
    ram, ssd = (done.cached_by_tier.get(tier, 0) * token_bytes for tier in (RAM.name, SSD.name))
    if done.cached_tokens:
        samples.note(
            TimedRequest(ram, ssd, done.cached_tokens, done.prompt_tokens - done.cached_tokens), done.ttft_ms / 1e3
        )
    if decoder.store is not None:
        decoder.store.flush()  # what is written behind this one does not disturb the next


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


def forget_folder(folder: Path) -> bool:
    """Ask the operating system to forget what it read of a folder's files; return whether it can be asked."""
    return all([forget_pages(path, written=True) for path in folder.rglob("*") if path.is_file()])


# -- rows -------------------------------------------------------------------------------------------------------------


def _rows(about: dict[str, Any], speed: Speed) -> list[dict[str, Any]]:
    pages = {"page_cache": "forgotten" if hasattr(os, "posix_fadvise") else "as it was"}
    return [
        {**about, "metric": "prefill_tokens_per_s", "value": 1 / speed.token_s, "unit": "tokens/s"},
        {**about, "metric": "attention_share", "value": 2 * speed.token2_s / speed.token_s, "unit": "of a token"},
        {**about, "metric": "decode_tokens_per_s", "value": 1 / speed.step_s, "unit": "tokens/s"},
        {**about, "metric": "decode_beside_s", "value": speed.beside_s, "unit": "s"},
        {**about, "metric": "prefill_share", "value": speed.prefill_share, "unit": "fraction"},
        {**about, "metric": "busy_latency_s", "value": speed.busy_s, "unit": "s"},
        {**about, "metric": "latency_s", "value": speed.base_s, "unit": "s"},
        {**about, "metric": "restore_latency_s", "value": speed.restore_s, "unit": "s"},
        {**about, "metric": "restore_bytes_per_s", "value": speed.memory, "unit": "B/s", "tier": RAM.name},
        {**about, "metric": "restore_bytes_per_s", "value": speed.ssd, "unit": "B/s", "tier": SSD.name, **pages},
        {**about, "metric": "written_bytes_per_s", "value": speed.write, "unit": "B/s"},
        {**about, "metric": "kv_bytes_per_token", "value": speed.token_bytes, "unit": "bytes"},
    ]


def _ratios(about: dict[str, Any], samples: Samples, speed: Speed, checked: int) -> list[dict[str, Any]]:
    longest = max(one.computed for one in samples.waits)
    cold, seen = samples.wait("", longest), samples.wait("", checked)
    ratio = {**about, "metric": "ratio", "unit": "x"}
    rows = []
    for tier in (RAM.name, SSD.name):
        if cold and (taken := samples.wait(tier, longest)):
            rows.append(
                {**ratio, "value": taken / cold, "tokens": longest, "of": f"restored from {tier}", "to": "computed"}
            )
    if seen:
        said = (speed.base_s + speed.prefill(0, checked)) / seen
        rows.append({**ratio, "value": said, "tokens": checked, "of": "predicted", "to": "measured"})
    return rows
