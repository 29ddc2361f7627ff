"""Does ``tiered:restore=auto`` ever answer later than always, or never, restoring? On a slow drive and on this one.

    PYTHONPATH=. python experiments/replay/restore_auto.py --out experiments/rows/restore_auto.json [--model NAME]

One folder holds prompts of several lengths. A round opens a new decoder for each of the three, in turns, so that each
first request is that of a process that has just started; it serves the same prompts, each with a few tokens more than
what is stored. The first prompt of a round is of another length each time. ``never`` is a decoder without reuse. A slow
drive is this one, where every file that was read is waited for as 20 MB/s would take. The operating system is asked to
forget the files before each decoder opens.

Rows: the median ``ttft_ms`` of each of the three by drive, length and phase (``cold`` for first requests, else
``warm``), and ``ratio`` rows: auto over the better one of the other two, both medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.bench.cost import forget_folder
from kvlab.bench.request_times import random_prompt
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.provenance import document, provenance
from kvlab.store.ssd import blockfile

SLOW_BYTES_PER_S = 20e6
NEVER, ALWAYS, AUTO = "never", "always", "auto"
TURNS = (NEVER, ALWAYS, AUTO)
MORE_TOKENS = 8
REPEATS = 2
"""Prompts of each length, so that those behind the first one of a process count as well."""


@contextmanager
def drive(bytes_per_s: float | None) -> Iterator[None]:
    """Have every block file that is read take as long as a drive of so many bytes a second would."""
    real = blockfile.read_to

    def read_to(path: Any, key: bytes, buffer: Any) -> Any:
        started = time.perf_counter()
        made = real(path, key, buffer)
        if bytes_per_s is not None:
            time.sleep(max(0.0, os.stat(path).st_size / bytes_per_s - (time.perf_counter() - started)))
        return made

    blockfile.read_to = read_to  # type: ignore[assignment]
    try:
        yield
    finally:
        blockfile.read_to = real


def policy(turn: str, folder: Path) -> str:
    if turn == NEVER:
        return "full"
    return f"paged:reply=false|tiered:ram=1GB,ssd=8GB,dir={folder},restore={turn}"


def measured(loaded: LoadedModel, folder: Path, lengths: list[int], rounds: int, rate: float | None) -> dict[Any, Any]:
    """Return seconds to the first token by turn, tokens, and whether it was the first request of a decoder."""
    draw, found = np.random.default_rng(0), defaultdict(list)
    prompts = [random_prompt(loaded, draw, n) for _ in range(REPEATS) for n in lengths]
    with Decoder(loaded, policy(ALWAYS, folder), retain=0) as decoder:
        for prompt in prompts:
            decoder.generate(prompt, max_tokens=1)
    with drive(rate):
        for number in range(rounds):
            asked = prompts[number % len(prompts) :] + prompts[: number % len(prompts)]
            for turn in (TURNS[(number + at) % len(TURNS)] for at in range(len(TURNS))):
                forget_folder(folder)
                with Decoder(loaded, policy(turn, folder), retain=0) as decoder:
                    for at, stored in enumerate(asked):
                        prompt = [*stored, *random_prompt(loaded, draw, MORE_TOKENS)]  # new ones for each decoder
                        done = decoder.generate(prompt, max_tokens=1)
                        phase = "warm" if at else "cold"
                        found[turn, len(prompt), phase].append(done.ttft_ms)
                        print(number, turn, len(prompt), phase, round(done.ttft_ms, 1), done.cached_tokens, flush=True)
    return found


def rows_of(found: dict[Any, Any], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tokens, phase in sorted({key[1:] for key in found}):
        row = {**about, "tokens": tokens, "phase": phase, "samples": len(found[AUTO, tokens, phase])}
        medians = {turn: statistics.median(found[turn, tokens, phase]) for turn in TURNS}
        for turn, value in medians.items():
            yield {**row, "restore": turn, "metric": "ttft_ms", "value": value, "unit": "ms"}
        best = min((NEVER, ALWAYS), key=medians.__getitem__)
        yield {**row, "metric": "ratio", "value": medians[AUTO] / medians[best], "unit": "x", "of": AUTO, "to": best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 768, 1536])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--drives", nargs="+", default=["20MB/s", "fast"])
    options = parser.parse_args()
    loaded, rows = load(options.model), []
    for name in options.drives:
        rate = SLOW_BYTES_PER_S if name == "20MB/s" else None
        with tempfile.TemporaryDirectory(prefix="kvlab-restore-") as folder:
            found = measured(loaded, Path(folder), options.lengths, options.rounds, rate)
        about = {"policy": "tiered", "workload": "restore_auto", "model": loaded.name, "drive": name}
        rows += rows_of(found, about)
    earlier = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    rows = [row for row in earlier if row["model"] != loaded.name or row["drive"] not in options.drives] + rows
    made = document("replay", rows, provenance(slow_bytes_per_s=SLOW_BYTES_PER_S))
    options.out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        if row["metric"] == "ratio" and row["model"] == loaded.name:
            print(row["drive"], row["tokens"], row["phase"], f"{row['value']:.3f} x {row['to']}")


if __name__ == "__main__":
    main()
