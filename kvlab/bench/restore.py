"""Restoring KV from SSD: against plain files, against computing it, and what write-behind costs the decoder."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.bench.models import random_qwen3
from kvlab.bench.request_times import no_end, random_prompt
from kvlab.bench.session import SECONDS, BenchSession, Clock
from kvlab.bench.speed import measure_speed
from kvlab.decoder import Completion, Decoder
from kvlab.errors import RunError
from kvlab.models import LoadedModel, ModelSource, load
from kvlab.policies import Policy
from kvlab.recording import events
from kvlab.store import Namespace, Store

PREFIX = 8000
PROMPT = 3900
LEAST = 128
"""Shortest prompt, however slow the model is."""
PREFILL_GROWTH = 2
"""How much longer a prompt takes than its first tokens' rate says: attention to all that came before."""
DECODING = 4
"""Sequences that decode while blocks are written behind them."""

FED = {"at rest": 0, "busy": 16 << 20, "flooded": 50 << 20}
"""Bytes a second that are put meanwhile: as many as prefill makes of this model where nothing decodes (2,600 tokens of
6 KB on two cores), and three times those. What is not written at once waits in RAM."""

TOGETHER = 16
"""Blocks put at once: those of a chunk of prefill."""

NAP = 0.01
"""Seconds between two looks whether there is something to put."""


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    rounds: int = 7,
    prefix: int = PREFIX,
    prompt: int = PROMPT,
    tokens: int = 96,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Rows of three comparisons, each alternating its two sides; values are medians over ``rounds``.

    ``restore``: ``restore_bytes_per_s`` of a prefix from SSD to live caches by the decoder, with an empty RAM tier, and
    of the same bytes from plain files into MLX arrays: as many files as the store has (one a block), and only one a
    live array, which no store of blocks can be; all from the operating system's page cache.
    ``restart``: ``ttft_ms`` of a prompt cold, and by a new decoder on the folder that the first has closed.
    ``write-behind``: ``tokens_per_s`` while the store gets as much to write as FED says, and while it rests;
    ``written_bytes_per_s`` is what it wrote meanwhile.
    All use a random-weight Qwen3 of 10M parameters, and the first two ``model`` as well; of these the bundled one is
    too small to restore more slowly than anything. Prompts are as long, and rounds as many, as ``seconds`` and the
    model's context allow.
    """
    random, given = random_qwen3(seed=seed), load(model)
    restored = [random] if model is None else [random, given]
    cases = [("restore", one) for one in restored] + [("restart", random), ("restart", given), ("write-behind", random)]
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-bench-") as name,
        BenchSession("restore", seconds, clock=clock) as session,
    ):
        for place, ((workload, loaded), share) in enumerate(session.parts(cases)):
            about = {"policy": "tiered", "workload": workload, "model": loaded.name}
            folder = Path(name) / str(place)
            folder.mkdir()
            if rows and session.is_over:
                session.skip(about, 1, "cases", "time")
            elif workload == "restore":
                rows += _restore(session, loaded, folder, about, prefix, rounds, seed, share)
            elif workload == "restart":
                rows += _restart(session, loaded, folder, about, prompt, max(1, rounds // 2), seed, share)
            else:
                rows += _write_behind(session, loaded, folder, about, rounds, seed, tokens, share)
        return rows + session.skipped


def _length(
    session: BenchSession, loaded: LoadedModel, about: dict[str, Any], wanted: int, seconds: float, prefills: int
) -> int:
    """Prompt tokens that may be prefilled so many times, and that leave room for an answer."""
    speed = measure_speed(loaded, session.clock)
    context = (loaded.context_length or wanted + 2) - 2
    length = session.cut(wanted, context, "prompt tokens", "context", about)
    each_s = PREFILL_GROWTH * prefills * speed.prompt_token_s
    return session.fit(length, seconds, each_s, least=LEAST, about=about, unit="prompt tokens")


def policy(folder: Path) -> str:
    return f"tiered:ram=256MB,ssd=4GB,dir={folder}"


def _tokens(loaded: LoadedModel, count: int, seed: int) -> list[int]:
    return random_prompt(loaded, np.random.default_rng(seed), count)


def _ratio(about: dict[str, Any], value: float, of: str, to: str) -> dict[str, Any]:
    return {**about, "metric": "ratio", "value": value, "unit": "x", "of": of, "to": to}


# -- against plain files ----------------------------------------------------------------------------------------------


class RestoredBytes:
    """A recorder that keeps only how many bytes were restored."""

    def __init__(self) -> None:
        self.bytes = 0

    def emit(self, event: events.Event) -> None:
        if isinstance(event, events.Restored):
            self.bytes += event.bytes


def _restore(
    session: BenchSession,
    loaded: LoadedModel,
    folder: Path,
    about: dict[str, Any],
    prefix: int,
    rounds: int,
    seed: int,
    seconds: float,
) -> list[dict[str, Any]]:
    started = session.clock()
    prefix = _length(session, loaded, about, prefix, seconds / 2, prefills=1)
    prompt = _tokens(loaded, prefix + 1, seed)
    session.show(f"restore of {loaded.name}: prefill")
    with Decoder(loaded, policy(folder)) as decoder:
        decoder.generate(prompt, max_tokens=1)
    _, size = _first_token(loaded, folder, prompt)
    blocks = -(-prefix // Policy.parse(policy(folder)).reuse.block)  # type: ignore[attr-defined]
    plain = {
        "plain files": _plain_files(folder / "plain", blocks, size),
        "plain files, one an array": _plain_files(folder / "arrays", 2 * loaded.n_layers, size),
    }
    rates: dict[str, list[float]] = {"store": [], **{name: [] for name in plain}}
    for number in session.rounds(rounds, seconds - (session.clock() - started), about, warm_up=False):
        for side in sorted(rates, reverse=not number % 2):
            if side == "store":
                completion, size = _first_token(loaded, folder, prompt)
                seconds = (completion.lookup_ms + completion.restore_ms) / 1e3
            else:
                seconds = _read(plain[side])
            rates[side].append(size / seconds)
    about = {**about, "tokens": prefix}
    unit = {"metric": "restore_bytes_per_s", "unit": "B/s"}
    rows = [{**about, **unit, "value": statistics.median(values), "library": name} for name, values in rates.items()]
    for name in plain:
        ratio = statistics.median(a / b for a, b in zip(rates["store"], rates[name], strict=True))
        rows.append(_ratio(about, ratio, "store", name))
    return rows


def _first_token(loaded: LoadedModel, folder: Path, prompt: list[int]) -> tuple[Completion, int]:
    """How a new decoder on a filled folder answers, and the bytes that it restored."""
    restored = RestoredBytes()
    with Decoder(loaded, policy(folder), recorder=restored) as decoder:
        return decoder.generate(prompt, max_tokens=1), restored.bytes


def _plain_files(folder: Path, count: int, size: int) -> list[Path]:
    """``count`` files of float32 numbers, ``size`` bytes together."""
    folder.mkdir()
    paths = [folder / str(i) for i in range(count)]
    for i, path in enumerate(paths):
        np.random.default_rng(i).standard_normal(size // count // 4, dtype=np.float32).tofile(path)
    return paths


def _read(paths: list[Path]) -> float:
    """Seconds that it takes to have the files as MLX arrays."""
    start = time.perf_counter()
    mx.eval([mx.array(np.fromfile(path, np.float32)) for path in paths])
    mx.synchronize()
    return time.perf_counter() - start


# -- against computing ------------------------------------------------------------------------------------------------


def _restart(
    session: BenchSession,
    loaded: LoadedModel,
    folder: Path,
    about: dict[str, Any],
    prompt: int,
    rounds: int,
    seed: int,
    seconds: float,
) -> list[dict[str, Any]]:
    prompt = _length(session, loaded, about, prompt, seconds, prefills=rounds + 1)
    times: dict[str, list[float]] = {"cold": [], "restart": []}
    for number in session.rounds(rounds, seconds, about):
        tokens = _tokens(loaded, prompt, seed + number)
        for phase in times:
            # Each in a folder of its own, deleted only at the end: ext4 is slow to make files where many just went.
            with Decoder(loaded, policy(folder / str(number))) as decoder:
                completion = decoder.generate(tokens, max_tokens=1)
            if number:
                times[phase].append(completion.ttft_ms)
    about = {**about, "tokens": prompt}
    unit = {"metric": "ttft_ms", "unit": "ms"}
    rows = [{**about, **unit, "value": statistics.median(values), "phase": phase} for phase, values in times.items()]
    ratio = statistics.median(a / b for a, b in zip(times["restart"], times["cold"], strict=True))
    return [*rows, _ratio(about, ratio, "restart", "cold")]


# -- behind decoding --------------------------------------------------------------------------------------------------


def _write_behind(
    session: BenchSession,
    loaded: LoadedModel,
    folder: Path,
    about: dict[str, Any],
    rounds: int,
    seed: int,
    tokens: int,
    seconds: float,
) -> list[dict[str, Any]]:
    prompts = [_tokens(loaded, 256, seed + i) for i in range(DECODING)]
    rates: dict[str, list[float]] = {state: [] for state in FED}
    written: dict[str, list[float]] = {state: [] for state in FED}
    with Decoder(loaded, f"tiered:dir={folder}") as decoder, _feeder(decoder.store, seed) as feed:
        for number in session.rounds(rounds, seconds, about):
            for state in sorted(rates, reverse=bool(number % 2)):
                before, start = feed.store.stats()["bytes_written"], time.perf_counter()
                feed.rate = FED[state]
                streams = [decoder.submit(p, max_tokens=tokens, logits_processors=[no_end(loaded)]) for p in prompts]
                rate = sum(1e3 / stream.result().tpot_ms for stream in streams)
                wrote = (feed.store.stats()["bytes_written"] - before) / (time.perf_counter() - start)
                feed.rate = 0
                feed.store.flush()
                if number:
                    rates[state].append(rate)
                    written[state].append(wrote)
    about = {**about, "n": DECODING}
    unit = {"metric": "tokens_per_s", "unit": "tokens/s"}
    rows = [{**about, **unit, "value": statistics.median(values), "store": state} for state, values in rates.items()]
    rest = rates.pop("at rest")
    for state, values in rates.items():
        wrote = statistics.median(written[state])
        rows.append({**about, "metric": "written_bytes_per_s", "value": wrote, "unit": "B/s", "store": state})
        ratio = statistics.median(a / b for a, b in zip(values, rest, strict=True))
        rows.append(_ratio(about, ratio, state, "at rest"))
    return rows


class WriteLoad:
    """Puts blocks of random numbers into a store, ``rate`` bytes of them a second."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.rate = 0
        self.ended = False
        self._rng = np.random.default_rng(seed)
        self._payload = {"0:k": self._rng.standard_normal((8, store.block, 256), dtype=np.float32)}
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        ns = Namespace("feed", "", "float32", self.store.block)
        size = TOGETHER * sum(array.nbytes for array in self._payload.values())
        due = 0.0
        while not self.ended:
            now, rate = time.monotonic(), self.rate
            if not rate:
                due = now
            elif now >= due:
                tokens = self._rng.integers(0, 1 << 30, TOGETHER * self.store.block)
                self.store.put(ns, tokens, 0, [self._payload] * TOGETHER)
                due += size / rate
            time.sleep(NAP)


@contextmanager
def _feeder(store: Store | None, seed: int) -> Iterator[WriteLoad]:
    if store is None:
        raise RunError("the policy of this benchmark has no store")
    feed = WriteLoad(store, seed)
    feed.thread.start()
    try:
        yield feed
    finally:
        feed.ended = True
        feed.thread.join()
