"""The figures that a real model gives: SmolLM2-135M, where quality or a real size matters."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab import charts
from kvlab.counts import counted
from kvlab.figures.claim import Claim, pick
from kvlab.figures.figure import Figure
from kvlab.figures.number import Number
from kvlab.figures.parts import method_ranking, over_full
from kvlab.figures.saved import Saved
from kvlab.results.forced_summary import summarize_forced
from kvlab.results.kept_share import accuracy_by_kept_share

SERVERS = {"tiered": "kvlab serve, tiered", "mlx-lm": "mlx_lm.server"}
ALL_TURNS = ("cold", "warm")
SHORT, LONG = "tools:bfcl", "tools:tau-bench"
KNOWN, UNKNOWN = "needle:single", "needle:single,question=none"
TITLES = {KNOWN: "question known", UNKNOWN: "question unknown"}


def _servers(saved: Saved, workload: str) -> pl.DataFrame:
    return saved.rows.filter(pl.col("workload") == workload).with_columns(pl.col("policy").replace(SERVERS))


def _needles(saved: Saved) -> Any:
    return charts.accuracy_by_kept_kv(accuracy_by_kept_share(saved.rows), TITLES)


def _tools(saved: Saved) -> Any:
    """Draw a row of panels for each source: its prompts are short, or long, and methods do not rank alike there."""
    parts = [
        summarize_forced(rows).with_columns(pl.lit(_source(rows)).alias("workload"))
        for rows in saved.rows.partition_by("workload", maintain_order=True)
    ]
    return charts.tools_by_policy(pl.concat(parts))


def _source(rows: pl.DataFrame) -> str:
    """Name a source, with its number of items and the tokens of its prompts."""
    tokens: Any = rows.filter(pl.col("metric") == "prompt_tokens")["value"].median()
    items = rows.filter(pl.col("metric") == "prompt_tokens").select("seed", "conversation").n_unique()
    name = rows["workload"][0].removeprefix("tools:")
    return f"{name}: {counted(items, 'item')}, prompts of {counted(round(tokens), 'token')} (median)"


def _beside_mlx_lm(metric: str, statistic: Any = "mean", **where: Any) -> Number:
    return Number(pick(metric, statistic, policy="tiered", **where), pick(metric, statistic, policy="mlx-lm", **where))


ON_SMOLLM2: tuple[Figure, ...] = (
    Figure(
        name="smollm2-ttft-by-turn",
        title="Time to first token by turn, SmolLM2-135M",
        experiments=("smollm2_ttft",),
        chart=lambda saved: charts.ttft_by_turn(saved.rows),
        metrics=frozenset({"ttft_ms"}),
        claims=(
            Claim(
                "At turn 15, tiered needs at most a fifth of the time of full",
                pick("ttft_ms", policy="tiered", turn=15),
                pick("ttft_ms", policy="full", turn=15),
                at_most=0.2,
                tolerance=0.5,
            ),
            Claim(
                "The first turn of a new process needs at most a fifth of the time of the same turn without a cache",
                pick("ttft_ms", policy="tiered", phase="restart"),
                pick("ttft_ms", policy="full", turn=8),
                at_most=0.2,
                tolerance=0.5,
            ),
            Claim("tiered gives the tokens of no cache", pick("exact", policy="tiered"), at_least=1),
        ),
        shows="The same on a real model, whose prompts take seconds on a CPU. After half of the turns `tiered` goes on "
        "in a new process.",
        numbers={
            "tiered-at-15": over_full("ttft_ms", "tiered", turn=15),
            "restart": Number(
                pick("ttft_ms", policy="tiered", phase="restart"), pick("ttft_ms", policy="full", turn=8)
            ),
        },
    ),
    Figure(
        name="needle-by-kept-kv",
        title="A needle in 1,000 tokens by the KV that is left, SmolLM2-135M",
        experiments=("needle", "needle_unknown"),
        chart=_needles,
        metrics=frozenset({"accuracy", "kv_bytes_live"}),
        claims=(
            Claim("full finds the needle", pick("accuracy", policy="full", workload=KNOWN), at_least=0.95),
            Claim(
                "Eight bits find it as full does",
                pick("accuracy", policy="quantized", workload=KNOWN),
                pick("accuracy", policy="full", workload=KNOWN),
                at_least=0.95,
            ),
            Claim(
                "random with half of the rows does not find it",
                pick("accuracy", policy="random", workload=KNOWN),
                at_most=0.25,
            ),
        ),
        shows="One number of seven digits in sentences that repeat; the method chooses its rows when it has seen the "
        "question, or before; bits and windows do not depend on it. To the left is less memory, up is more right "
        "answers. Each digit counts: a method that keeps half of the number finds nothing.",
        numbers={
            "asked": Number(pick("accuracy", "count", policy="full", workload=KNOWN)),
            "four-bits-right": Number(pick("accuracy", "sum", policy="quantized:bits=4", workload=KNOWN)),
            "snapkv-right": Number(pick("accuracy", "sum", policy="snapkv", workload=KNOWN)),
            "knorm-right": Number(pick("accuracy", "sum", policy="knorm", workload=KNOWN)),
            "random-right": Number(pick("accuracy", "sum", policy="random", workload=KNOWN)),
        },
    ),
    Figure(
        name="needle-in-2500-tokens",
        title="A needle in 2,500 tokens by the KV that is left, SmolLM2-135M",
        experiments=("needle_long", "needle_long_unknown"),
        chart=_needles,
        metrics=frozenset({"accuracy", "kv_bytes_live"}),
        claims=(
            Claim("full finds the needle", pick("accuracy", policy="full", workload=KNOWN), at_least=0.95),
            Claim(
                "Eight bits find it where full does",
                pick("accuracy", policy="quantized", workload=KNOWN),
                pick("accuracy", policy="full", workload=KNOWN),
                at_least=0.95,
            ),
            Claim(
                "With half of the rows, knorm finds three times what snapkv finds",
                pick("accuracy", policy="knorm", workload=KNOWN),
                pick("accuracy", policy="snapkv", workload=KNOWN),
                at_least=3,
                tolerance=0.2,
            ),
            Claim(
                "snapkv finds hardly anything where it does not know the question",
                pick("accuracy", policy="snapkv:budget=0.75", workload=UNKNOWN),
                pick("accuracy", policy="full", workload=UNKNOWN),
                at_most=0.1,
            ),
        ),
        shows="The same in a text that is two and a half times as long.",
        numbers={
            "asked": Number(pick("accuracy", "count", policy="full", workload=KNOWN)),
            "right": Number(pick("accuracy", "sum", policy="full", workload=KNOWN)),
            "four-bits-right": Number(pick("accuracy", "sum", policy="quantized:bits=4", workload=KNOWN)),
            "knorm-right": Number(pick("accuracy", "sum", policy="knorm", workload=KNOWN)),
            "snapkv-right": Number(pick("accuracy", "sum", policy="snapkv", workload=KNOWN)),
            "random-right": Number(pick("accuracy", "sum", policy="random", workload=KNOWN)),
        },
    ),
    Figure(
        name="needle-by-method",
        title="Every eviction method on a needle in 1,000 tokens, SmolLM2-135M",
        experiments=("methods", "methods_unknown"),
        chart=lambda saved: method_ranking(saved.rows, TITLES),
        metrics=frozenset({"accuracy", "kv_bytes_live"}),
        claims=(
            Claim("full finds the needle", pick("accuracy", policy="full", workload=KNOWN), at_least=0.95),
            Claim(
                "keydiff finds it with a quarter of the rows",
                pick("accuracy", policy="keydiff:budget=0.25", workload=KNOWN),
                at_least=0.8,
            ),
            Claim(
                "Blocks that keydiff compresses one by one, half of each, answer nearly as well",
                pick("accuracy", policy="local", workload=KNOWN),
                at_least=0.7,
            ),
            Claim(
                "full finds the needle where the question comes later, too",
                pick("accuracy", policy="full", workload=UNKNOWN),
                at_least=0.95,
            ),
            Claim(
                "random with half of the rows finds nothing",
                pick("accuracy", policy="random", workload=KNOWN),
                at_most=0.1,
            ),
        ),
        shows="The needle in 1,000 tokens, under every method that needs no file. Two marks a method: a quarter and "
        "half of the prompt's rows stay. [What the ranking says](../quality.md).",
        numbers={
            "asked": Number(pick("accuracy", "count", policy="full", workload=KNOWN)),
            "keydiff-quarter": Number(pick("accuracy", "sum", policy="keydiff:budget=0.25", workload=KNOWN)),
            "local-half": Number(pick("accuracy", "sum", policy="local", workload=KNOWN)),
            "local-quarter": Number(pick("accuracy", "sum", policy="local:budget=0.25", workload=KNOWN)),
            "snapkv-half": Number(pick("accuracy", "sum", policy="snapkv", workload=KNOWN)),
            "random-half": Number(pick("accuracy", "sum", policy="random", workload=KNOWN)),
            "keydiff-quarter-unknown": Number(pick("accuracy", "sum", policy="keydiff:budget=0.25", workload=UNKNOWN)),
            "tova-half-unknown": Number(pick("accuracy", "sum", policy="tova", workload=UNKNOWN)),
            "pyramidkv-half-unknown": Number(pick("accuracy", "sum", policy="pyramidkv:window=8", workload=UNKNOWN)),
            "local-half-unknown": Number(pick("accuracy", "sum", policy="local", workload=UNKNOWN)),
        },
    ),
    Figure(
        name="tools-by-policy",
        title="Which compression breaks tool calls first, SmolLM2-135M",
        experiments=("tools",),
        chart=_tools,
        metrics=frozenset({"kl", "tool_flip", "equal_call", "kv_bytes_live", "prompt_tokens"}),
        claims=(
            Claim(
                "Behind short prompts, eight bits flip at most one token of an argument in a hundred",
                pick("tool_flip", policy="quantized", kind="argument", workload=SHORT),
                at_most=0.01,
                tolerance=0.5,
            ),
            Claim(
                "Behind short prompts, the half that snapkv keeps flips at least one token of an argument in ten",
                pick("tool_flip", policy="snapkv", kind="argument", workload=SHORT),
                at_least=0.1,
            ),
            Claim(
                "Behind long prompts, snapkv with half of the tokens keeps three calls of four",
                pick("equal_call", policy="snapkv", workload=LONG),
                at_least=0.75,
                tolerance=0.1,
            ),
            Claim(
                "Behind long prompts, four bits keep at most one call of four",
                pick("equal_call", policy="quantized:bits=4", workload=LONG),
                at_most=0.25,
            ),
        ),
        shows="Calls of BFCL and tau-bench, led through every policy token by token: how often the most probable token "
        "is another one than that of `full`, and how often the call that the model writes by itself is the same.",
        numbers={
            "long-snapkv": Number(pick("equal_call", policy="snapkv", workload=LONG), scale=100),
            "long-eight-bits": Number(pick("equal_call", policy="quantized", workload=LONG), scale=100),
            "long-four-bits": Number(pick("equal_call", policy="quantized:bits=4", workload=LONG), scale=100),
            "short-snapkv": Number(pick("equal_call", policy="snapkv", workload=SHORT), scale=100),
            "short-eight-bits": Number(pick("equal_call", policy="quantized", workload=SHORT), scale=100),
            "short-four-bits": Number(pick("equal_call", policy="quantized:bits=4", workload=SHORT), scale=100),
        },
    ),
    Figure(
        name="server-ttft-by-turn",
        title="kvlab's server beside mlx_lm.server: an agent and a restart, SmolLM2-135M",
        experiments=("servers",),
        chart=lambda saved: charts.ttft_by_turn(_servers(saved, "agent")),
        metrics=frozenset({"ttft_ms"}),
        claims=(
            Claim(
                "Over all turns before the restart, kvlab needs at most half of the time to first token",
                pick("ttft_ms", "sum", policy="tiered", phase=ALL_TURNS),
                pick("ttft_ms", "sum", policy="mlx-lm", phase=ALL_TURNS),
                at_most=0.5,
                tolerance=0.3,
            ),
            Claim(
                "After a restart it needs at most a tenth",
                pick("ttft_ms", policy="tiered", phase="restart"),
                pick("ttft_ms", policy="mlx-lm", phase="restart"),
                at_most=0.1,
                tolerance=0.5,
            ),
        ),
        shows="What a client waits for, through HTTP, each server with its own defaults; only one runs at a time. "
        "kvlab keeps KV on disk, mlx_lm.server in memory.",
        numbers={
            "sum": _beside_mlx_lm("ttft_ms", "sum", phase=ALL_TURNS),
            "sum-kvlab-s": Number(pick("ttft_ms", "sum", policy="tiered", phase=ALL_TURNS), scale=1e-3, digits=3),
            "sum-mlx-lm-s": Number(pick("ttft_ms", "sum", policy="mlx-lm", phase=ALL_TURNS), scale=1e-3, digits=3),
            "restart-kvlab-s": Number(pick("ttft_ms", policy="tiered", phase="restart"), scale=1e-3),
            "restart-mlx-lm-s": Number(pick("ttft_ms", policy="mlx-lm", phase="restart"), scale=1e-3),
        },
    ),
    Figure(
        name="server-throughput",
        title="kvlab's server beside mlx_lm.server: agents at once, SmolLM2-135M",
        experiments=("servers",),
        chart=lambda saved: charts.throughput_by_concurrency(_servers(saved, "crowd")),
        metrics=frozenset({"tokens_per_s"}),
        claims=(
            Claim(
                "With eight agents kvlab answers at least 1.5 times as many tokens a second",
                pick("tokens_per_s", policy="tiered", n=8),
                pick("tokens_per_s", policy="mlx-lm", n=8),
                at_least=1.5,
                tolerance=0.2,
            ),
        ),
        shows="Agents with a system prompt in common and a conversation each, two requests one after the other. Tokens "
        "of all answers over the whole time, prefill included.",
        numbers={
            "kvlab-at-8": Number(pick("tokens_per_s", policy="tiered", n=8)),
            "mlx-lm-at-8": Number(pick("tokens_per_s", policy="mlx-lm", n=8)),
        },
    ),
)
