"""Every chart over any number of policies and turns, of made-up rows: to be drawn in tests, and looked at.

``python -m tests.chart_gallery FOLDER`` writes each as a picture, on a light and on a dark page.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.charts.colors import on_dark
from kvlab.charts.policy_styles import method_of
from kvlab.charts.ttft import PARTS
from kvlab.results import Results, row

TEN = (
    "full", "tiered", "paged", "rotating:window=512", "snapkv:budget=0.1", "snapkv:budget=0.25", "snapkv",
    "knorm:budget=0.25", "quantized:bits=4", "paged:block=64|quantized:bits=8,group=32|tiered:ram=6MB,ssd=1GB",
)  # fmt: skip
"""A sweep: two of them are of one method with the default budget, one has a long name."""


def gallery(policies: Sequence[str] = TEN, turns: int = 8) -> dict[str, Any]:
    """Return every chart by name, with the options that change its look."""
    rows, events = run_rows(policies, turns), Events(policies, turns)
    parts = ttft_parts(policies, turns)
    return {
        "ttft_by_turn": charts.ttft_by_turn(rows),
        "ttft_by_turn-log": charts.ttft_by_turn(rows, log=True),
        "cached_tokens_by_turn": charts.cached_tokens_by_turn(rows),
        "accuracy_by_policy": charts.accuracy_by_policy(rows),
        "accuracy_by_policy-one-kind": charts.accuracy_by_policy(rows.with_columns(kind=pl.lit("all"))),
        "quality_by_bytes": charts.quality_by_bytes(rows),
        "quality_by_bytes-kl": charts.quality_by_bytes(rows, "kl"),
        "quality_by_live_bytes": charts.quality_by_live_bytes(rows, dict.fromkeys(policies, "0.25")),
        "throughput_by_concurrency": charts.throughput_by_concurrency(concurrency_rows(policies)),
        "live_bytes_by_concurrency": charts.live_bytes_by_concurrency(concurrency_rows(policies, ("shared", "ragged"))),
        "kv_bytes_over_time": charts.kv_bytes_over_time(events.tokens, events.finished, events.submitted),
        "token_gaps": charts.token_gaps(events.first, events.tokens),
        "gaps_beside_a_long_prompt": charts.gaps_beside_a_long_prompt(pace_rows()),
        "ttft_after_restart": charts.ttft_after_restart(rows),
        "ttft_waterfall": charts.ttft_waterfall(parts),
        "ttft_waterfall-one": charts.ttft_waterfall(parts, policies=[policies[-1]], turn=turns),
        "bytes_by_tier": charts.bytes_by_tier(*tier_rows(turns)),
        "bytes_at_rest": charts.bytes_at_rest(steps(turns), step=max(1, turns // 2)),
        "block_map": charts.block_map(blocks(turns)),
        "eviction_map": charts.eviction_map(evictions(turns), length=60 * turns, steps=max(4, turns)),
        "accuracy_by_kept_kv": charts.accuracy_by_kept_kv(kept_shares(policies), {"known": "question known"}),
        "accuracy_by_method": charts.accuracy_by_method(by_method(policies), {"known": "question known"}),
        "kl_by_stored_bytes": charts.kl_by_stored_bytes(of_codecs()),
        "measures_by_method": charts.measures_by_method(by_measure(policies), "Distance by method"),
        "waits_by_design": charts.waits_by_design(ranked(policies)),
        "eviction_map-one": charts.eviction_map(evictions(turns), layers=[0], heads=[0]),
    }


def by_method(policies: Sequence[str]) -> pl.DataFrame:
    """Return a summary of right answers with two budgets a method."""
    methods = list(dict.fromkeys(map(method_of, policies)))
    made = [
        (workload, method, budget, share, max(0.0, share - 0.2), min(1.0, share + 0.2))
        for workload in ("known", "unknown")
        for place, method in enumerate(methods)
        for budget, share in ((0.25, place / len(methods) / 2), (0.5, place / len(methods)))
    ]
    return pl.DataFrame(made, schema=["workload", "method", "budget", "accuracy", "low", "high"], orient="row")


def of_codecs() -> pl.DataFrame:
    """Return a summary of codecs at bytes of which several are nearly equal."""
    made = [
        (method, f"{method} {bits}", (bits + 0.25 * place) / 16, 3.0**-bits, 2.0 * 3.0**-bits, 0.5 * 3.0**-bits)
        for place, method in enumerate(("quantized", "rotated", "kivi", "turboquant"))
        for bits in (2, 3, 4, 6)
    ]
    return pl.DataFrame(made, schema=["method", "label", "share", "kl", "high", "low"], orient="row")


def by_measure(policies: Sequence[str]) -> pl.DataFrame:
    """Return a summary of two measures with two budgets a method, one below and one above all others."""
    methods = ["oracle", *dict.fromkeys(map(method_of, policies)), "random"]
    made = [
        (measure, method, budget, value, value / 2, min(1.0, 2 * value))
        for measure in ("flips", "KL")
        for place, method in enumerate(dict.fromkeys(methods))
        for budget, value in ((0.25, 0.02 * (place + 1)), (0.5, 0.01 * (place + 1)))
    ]
    return pl.DataFrame(made, schema=["measure", "method", "budget", "value", "low", "high"], orient="row")


def kept_shares(policies: Sequence[str]) -> pl.DataFrame:
    made = [
        {"workload": workload, "policy": policy, "kept": share, "accuracy": share, "low": share / 2, "high": 1.0}
        for workload in ("known", "unknown")
        for policy, share in zip(policies, [(at + 1) / len(policies) for at in range(len(policies))], strict=True)
    ]
    return pl.DataFrame(made).with_columns(items=pl.lit(40))


def run_rows(policies: Sequence[str], turns: int) -> pl.DataFrame:
    made = []
    for i, policy in enumerate(policies):
        for turn in range(1, turns + 1):
            for repeat in (0, 1):
                is_restart = "tiered" in policy and turn == turns
                phase = "restart" if is_restart else "cold" if turn == 1 else "warm"
                where: dict[str, Any] = {
                    "turn": turn, "phase": phase, "conversation": "c", "seed": repeat, "repeat": repeat,
                    "model": "tiny", "n": 1,
                }  # fmt: skip
                slope = 4.0 if "paged" in policy or "tiered" in policy else 60.0 + 12 * i
                reused = 0.0 if slope > 50 else 290.0 * (turn - 1)
                values = {
                    "ttft_ms": 80 + slope * turn * (1 + 0.1 * repeat) + 3 * i,
                    "cached_tokens": reused,
                    "prompt_tokens": 310.0 * turn,
                    "kv_bytes_live": 9e6 / (1 + i % 5),
                    "kl": 0.0 if i < 3 else 0.002 * 3 ** (i - 3),
                }
                made += [row(policy, "agent", metric, value, **where) for metric, value in values.items()]
                kind = ("call", "recall", "long question")[turn % 3]
                made.append(row(policy, "agent", "accuracy", float((turn * 7 + i * 3) % 4 > i % 3), kind=kind, **where))
    return Results(made, {}).frame()


def concurrency_rows(policies: Sequence[str], workloads: Sequence[str] = ("agent",)) -> pl.DataFrame:
    made = []
    for i, policy in enumerate(policies):
        for n in (1, 2, 4, 8, 16):
            for j, workload in enumerate(workloads):
                for repeat in (0, 1):
                    where = {"n": n, "model": "tiny", "repeat": repeat}
                    speed = (30 + 9 * i + 4 * j) * math.sqrt(n) * (1 + 0.08 * repeat)
                    made.append(row(policy, workload, "tokens_per_s", speed, **where))
                    made.append(row(policy, workload, "kv_bytes_live", 1e6 * n * (1 + i / 3 + j), **where))
    return Results(made, {}).frame()


class Events:
    """Events of requests one after another, by kind."""

    def __init__(self, policies: Sequence[str], turns: int) -> None:
        tokens, firsts, starts, ends = [], [], [], []
        for i, policy in enumerate(policies):
            at = 100.0 * i
            for request in range(turns):
                starts.append((policy, request, at))
                at += 0.1 + 0.02 * i
                firsts.append((policy, request, at))
                for step in range(12):
                    at += 0.01 * (1 + i / 4) * (1 + (step * 7 % 5) / 3)
                    tokens.append((policy, request, at, (3_000_000 + 40_000 * step) // (1 + i % 4)))
                ends.append((policy, request, at))
        columns = ["policy", "request", "t"]
        self.tokens = pl.DataFrame(tokens, schema=[*columns, "kv_bytes"], orient="row")
        self.first, self.submitted, self.finished = (
            pl.DataFrame(found, schema=columns, orient="row") for found in (firsts, starts, ends)
        )


def ttft_parts(policies: Sequence[str], turns: int) -> pl.DataFrame:
    made: list[dict[str, Any]] = []
    for i, policy in enumerate(policies):
        for turn in range(1, turns + 1):
            start = 0.0
            for part, ms in zip(PARTS, (4.0, 2.0, 9.0, 20.0 * turn + i, 12.0), strict=True):
                made.append(
                    {"policy": policy, "request": turn, "turn": turn, "part": part, "start": start, "stop": start + ms,
                     "ms": ms}
                )  # fmt: skip
                start += ms
    return pl.DataFrame(made)


def pace_rows() -> pl.DataFrame:
    made = [
        {"policy": "full", "model": model, "metric": metric, "phase": phase, "value": value}
        for model in ("tiny", "large")
        for metric, phase, value in (("itl_p50_ms", "quiet", 4.0), ("itl_p99_ms", "prefill", 11.0))
    ]
    return pl.DataFrame(made)


def tier_rows(turns: int) -> tuple[pl.DataFrame, ...]:
    events = Events(["tiered"], turns)
    numbers = pl.col("request").cast(pl.Int64) + 1
    submitted = events.submitted.with_columns(pl.lit("c").alias("conversation"), numbers.alias("turn"))
    made = []
    for turn in range(1, turns + 1):
        where: dict[str, Any] = {"turn": turn, "conversation": "c"}
        made.append(row("tiered", "agent", "kv_bytes_ram", min(6e6, 2e6 * turn), **where))
        made.append(row("tiered", "agent", "kv_bytes_ssd", max(0.0, 2e6 * turn - 5e6), **where))
    return Results(made, {}).frame(), events.tokens, events.finished, submitted


def steps(turns: int) -> pl.DataFrame:
    return pl.DataFrame(
        [{"step": i, "ram": min(6, 2 * i) * 10**6, "ssd": max(0, 2 * i - 5) * 10**6} for i in range(1, turns + 1)]
    )


def blocks(turns: int) -> pl.DataFrame:
    names = ("ram", "ssd", "gone")
    found = [
        (turns, f"conversation {c}", i, names[(i // 3 + c) % 3]) for c in range(max(1, turns // 2)) for i in range(9)
    ]
    return pl.DataFrame(found, schema=["step", "conversation", "block", "tier"], orient="row")


def evictions(turns: int) -> pl.DataFrame:
    lost = [
        (0, layer, head, position, position % max(2, turns // 2))
        for layer in range(4)
        for head in range(2)
        for position in range(8, 50 * turns)
        if (position // 7 + layer + head) % 3
    ]
    return pl.DataFrame(lost, schema=["request", "layer", "head", "position", "step"], orient="row")


def ranked(policies: Sequence[str]) -> pl.DataFrame:
    """Rows of advice: the first policy is chosen, two others tie."""
    where = [{"rank": i, "chosen": i == 1, "tied": i in (2, 3), "fits": True} for i in range(1, len(policies) + 1)]
    made = [
        {"policy": policy, "metric": "ttft_total_ms", "value": 4e3 * (1 + max(0, i - 2)), **where[i]}
        for i, policy in enumerate(policies)
    ]
    return pl.DataFrame(made)


def main(folder: Path) -> None:
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in gallery().items():
        spec = chart.to_dict()
        for page, drawn in (("light", spec), ("dark", on_dark(spec))):
            (folder / f"{name}-{page}.png").write_bytes(vl_convert.vegalite_to_png(drawn, scale=1.2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
