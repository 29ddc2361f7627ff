"""Cached tokens by TTFT beside those reported: ``python experiments/real_servers/inferred.py [SETUP…]``.

Each case is a prompt and a second one that shares a known part of it. The pair is asked several times with other words,
cases in turns, so that a slow minute of the machine meets all of them. From the median TTFT of a case's second prompts
the audit's curve infers their cached tokens. A second inference takes what the exact repeat of a prompt costs as the
cost of any request that finds KV: a copy of it, for instance, which cold prompts do not pay.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import setups
from models import MODELS
from process import ServerProcess
from setups import SETUPS, Setup
from tqdm import tqdm

from kvlab.audit import AuditClient, Lab, prepare
from kvlab.audit.curve import ColdCurve
from kvlab.audit.material import system, user

ROWS = Path(__file__).resolve().parents[1] / "rows" / "inferred_tokens.csv"
DEFAULT = ("llama-server-np1-smollm2", "mlx-lm-smollm2")
COLUMNS = (
    *("setup", "version", "date", "case", "repeats", "prompt_tokens", "reported_tokens", "inferred_tokens"),
    *("median_ttft_ms", "difference", "largest_single_difference", "curve_spread"),
    *("repeat_ttft_ms", "base_ms", "inferred_by_repeat_tokens", "difference_by_repeat"),
)

COLD_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of a usual prompt: lengths that the curve is fitted to."""

SHARED = {"a third": 0.33, "a half": 0.5, "four fifths": 0.8, "all but a question": 0.97}
"""Of the second prompt, known from the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setups", nargs="*", default=DEFAULT, help=f"of {', '.join(SETUPS)}")
    parser.add_argument("--environments", type=Path, help="folder of the servers; else KVLAB_HOME/real_servers")
    parser.add_argument("--tokens", type=int, default=600, help="size of a prompt")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of each case")
    parser.add_argument("--out", type=Path, default=ROWS)
    options = parser.parse_args()
    kept = []
    if options.out.is_file():
        with options.out.open(encoding="utf-8", newline="") as text:
            kept = [row for row in csv.DictReader(text) if row["setup"] not in options.setups]
    for name in options.setups:
        if reason := setups.why_absent(SETUPS[name], options.environments):
            print(f"skipped {name}: {reason}", file=sys.stderr)
            continue
        kept += list(measure(SETUPS[name], options.environments, options.tokens, options.repeats))
    with options.out.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def measure(setup: Setup, environments: Path | None, tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each case."""
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-inferred-") as work,
        ServerProcess(setup, MODELS[setup.model](environments), Path(work), environments) as server,
        AuditClient(server.url, _model_name(setup, environments)) as client,
        tqdm(desc=setup.name, total=repeats * (len(COLD_SHARES) + 3 * len(SHARED)), unit="request") as bar,
    ):
        lab = prepare(client, salt="inferred", tokens=tokens)
        cold, hits, again = _ask_all(lab, repeats, bar)
    curve = ColdCurve.fit(cold)
    by_repeat = replace(curve, base=max(curve.base, statistics.median(again)))
    version = setups.version_label(setups.versions(setup, environments), setup)
    facts = {"setup": setup.name, "version": version, "date": datetime.now(UTC).date().isoformat()}
    for case, seen in hits.items():
        size, reported = (statistics.median(one[at] for one in seen) for at in (0, 1))
        ttft = statistics.median(seconds for _, _, seconds in seen)
        inferred = curve.cached(int(size), ttft).tokens
        singles = [abs(curve.cached(n, seconds).tokens - told) / told for n, told, seconds in seen]
        yield facts | {
            "case": case,
            "repeats": repeats,
            "prompt_tokens": int(size),
            "reported_tokens": int(reported),
            "inferred_tokens": round(inferred),
            "median_ttft_ms": round(1e3 * ttft, 1),
            "difference": round(abs(inferred - reported) / reported, 4),
            "largest_single_difference": round(max(singles), 4),
            "curve_spread": round(curve.spread, 4),
            "repeat_ttft_ms": round(1e3 * statistics.median(again), 1),
            "base_ms": round(1e3 * curve.base, 1),
            "inferred_by_repeat_tokens": round(by_repeat.cached(int(size), ttft).tokens),
            "difference_by_repeat": round(abs(by_repeat.cached(int(size), ttft).tokens - reported) / reported, 4),
        }


def _ask_all(
    lab: Lab, repeats: int, bar: tqdm[Any]
) -> tuple[list[tuple[int, float]], dict[str, list[tuple[int, int, float]]], list[float]]:
    """Return (prompt tokens, seconds) of cold prompts, (prompt tokens, reported, seconds) of each case, and the seconds
    of exact repeats."""
    again: list[float] = []
    cold: list[tuple[int, float]] = []
    hits: dict[str, list[tuple[int, int, float]]] = {case: [] for case in SHARED}
    sizes: dict[float, int] = {}
    for repeat in range(repeats):
        for share in COLD_SHARES:
            reply = lab.ask(_messages(lab.material.text(f"cold {share} {repeat}", round(share * lab.tokens))))
            bar.update()
            size = sizes.setdefault(share, reply.prompt_tokens or 0)
            cold.append((size, reply.ttft_s))
        for case, share in SHARED.items():
            shared = lab.material.text(f"{case} {repeat}", round(share * lab.tokens))
            for end in ("first", "second"):
                words = lab.material.text(f"{case} {end} {repeat}", max(8, round((1 - share) * lab.tokens)))
                reply = lab.ask(_messages(f"{shared} {words}"))
                bar.update()
            hits[case].append((reply.prompt_tokens or 0, reply.cached_tokens or 0, reply.ttft_s))
            again.append(lab.ask(_messages(f"{shared} {words}")).ttft_s)
            bar.update()
    return cold, hits, again


def _messages(text: str) -> list[dict[str, Any]]:
    """Return a prompt that begins with ``text``: a system prompt, so that no template writes one of its own before it.

    Such a beginning would be cached in every request, those of the curve of cold prompts among them.
    """
    return [system(text), user("Go on.")]


def _model_name(setup: Setup, environments: Path | None) -> str | None:
    """Return the name that requests carry: mlx_lm.server would load another model without."""
    return str(MODELS[setup.model](environments)) if setup.server == "mlx-lm" else None


if __name__ == "__main__":
    main()
