"""The figures of the six server designs: one picture of all that `experiments/stack` measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from kvlab.charts.glance import at_a_glance
from kvlab.figures.claim import Claim, pick
from kvlab.figures.figure import Figure
from kvlab.figures.stack_page.stack_rows import STACK, STACK_SMOLLM2
from kvlab.results.rows import TOGETHER
from kvlab.systems import System, all_systems, system_names

MB = 1e-6
METRICS = frozenset(
    {
        *("ttft_ms", "tokens_per_s", "prompt_tokens", "cached_tokens", "accuracy", "exact", "hit_ratio"),
        *("kv_bytes_live", "kv_bytes_ram", "kv_bytes_ssd", "bytes_written"),
        *("refused", "cut_tokens", "discarded_tokens"),
    }
)
Values = dict[str, float]


def plain_name(policy: str) -> str:
    """Return the name of a candidate without what a part of the measurement sets: its context."""
    if policy.partition(":")[0] not in system_names():
        return policy
    read = System.parse(policy)
    same = ("name", "variant", "engine")
    found = (one for one in all_systems() if all(getattr(one, part) == getattr(read, part) for part in same))
    return next((str(one) for one in found), policy)


def cells(rows: pl.DataFrame) -> pl.DataFrame:
    """Return every candidate's value at every measure, as `kvlab.charts.glance` takes them."""
    named = rows.with_columns(pl.col("policy").map_elements(plain_name, return_dtype=pl.String))
    part = {name: named.filter(pl.col("workload") == f"stack-{name}") for name in ("turns", "agents", "memory")}
    part["overflow"] = named.filter(pl.col("workload") == "stack-overflow", pl.col("kind") == "beyond")
    last = part["turns"].filter(pl.col("turn") == part["turns"]["turn"].max())
    half = part["turns"].filter(pl.col("phase") == "restart")["turn"].min()
    after = part["turns"].filter(pl.col("turn") == half)
    crowd = part["agents"].filter(pl.col("n") == part["agents"]["n"].max())
    most: Any = crowd["n"].max()
    running, waiting = (part["memory"].filter(pl.col("kind") == kind) for kind in ("running", "waiting"))
    kept = _of(waiting, "hit_ratio", pl.mean("value"))
    waits = _of(waiting, "kv_bytes_ram", pl.mean("value"))
    calls = part["turns"].filter(pl.col("kind") == "call")
    measures: tuple[tuple[str, bool, Values, Callable[[float], str]], ...] = (
        ("TTFT,|last turn", False, _of(last, "ttft_ms", pl.median("value")), _ms),
        ("TTFT after|a restart", False, _of(after, "ttft_ms", pl.median("value")), _ms),
        (f"TTFT p95,|{most} agents", False, _of(crowd, "ttft_ms", pl.quantile("value", 0.95)), _ms),
        (
            f"tokens/s,|{most} agents",
            True,
            _of(crowd.filter(pl.col("kind") == TOGETHER), "tokens_per_s", pl.median("value")),
            lambda value: f"{value:,.0f}",
        ),
        ("one more|runs", False, _of(running, "kv_bytes_live", pl.mean("value")), _mb),
        ("one more|waits", False, {one: value for one, value in waits.items() if kept[one]}, _mb),
        ("waiting ones|kept", True, kept, _share),
        ("right beyond|the context", True, _of(part["overflow"], "accuracy", pl.mean("value")), _share),
        ("written|to SSD", False, _of(part["turns"], "bytes_written", pl.max("value")), _mb),
        ("calls|valid", True, _of(calls, "accuracy", pl.mean("value")), _share),
    )
    order = named["policy"].unique(maintain_order=True).to_list()
    made = [
        {"policy": policy, "measure": name, "value": value, "shown": text(value), "more_is_better": more}
        for name, more, values, text in measures
        for policy in order
        if (value := values.get(policy, 0.0 if "SSD" in name else None)) is not None
    ]
    return pl.DataFrame(made)


def _of(rows: pl.DataFrame, metric: str, statistic: pl.Expr) -> Values:
    found = rows.filter(pl.col("metric") == metric).group_by("policy").agg(statistic.alias("value"))
    return dict(found.select("policy", "value").iter_rows())


def _ms(value: float) -> str:
    return f"{value:,.0f} ms"


def _mb(value: float) -> str:
    return "0" if value == 0 else f"{value * MB:.1f} MB"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _figure(experiment: str, of: str = "", more: str = "") -> Figure:
    """Return the picture of all candidates at all measures, from the rows of an experiment ``of`` a model."""
    return Figure(
        name=f"{experiment.replace('_', '-')}-at-a-glance",
        title=f"Six server designs at a glance{of}",
        experiments=(experiment,),
        chart=lambda saved: at_a_glance(cells(saved.rows), f"Six server designs, one bench{of}"),
        metrics=METRICS,
        claims=(
            Claim(
                "tiered gives the tokens of no cache, over the restart too",
                pick("exact", policy="tiered", workload="stack-turns"),
                at_least=1,
            ),
            Claim(
                "tiered keeps all agents that wait",
                pick("hit_ratio", policy="tiered", workload="stack-memory"),
                at_least=1,
            ),
            Claim(
                "One more running agent costs tiered at most half of the live KV that it costs full",
                pick("kv_bytes_live", policy="tiered", workload="stack-memory", kind="running"),
                pick("kv_bytes_live", policy="full", workload="stack-memory", kind="running"),
                at_most=0.5,
                tolerance=0.2,
            ),
        ),
        shows="The cache designs of six servers, as released and as an article of 2026 has them, on one decoder with "
        "the same model and prompts. One agent over 15 turns with a restart; agents at once behind one system prompt; "
        f"the memory of one more agent that runs or waits; early facts asked for beyond the context.{more}",
    )


ON_STACK = (
    _figure(STACK),
    _figure(STACK_SMOLLM2, ", SmolLM2-135M", " Fewer conversations and agents."),
)
