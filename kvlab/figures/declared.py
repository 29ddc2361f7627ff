"""The figures of the docs: those of the bundled model are declared here, the others in files beside this one."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab import charts
from kvlab.errors import RunError
from kvlab.experiments.event_tables import positions
from kvlab.figures.claim import Claim, pick
from kvlab.figures.figure import Figure
from kvlab.figures.number import Number
from kvlab.figures.on_codecs import ON_CODECS
from kvlab.figures.on_methods import ON_METHODS
from kvlab.figures.on_smollm2 import ON_SMOLLM2
from kvlab.figures.on_stack import ON_STACK
from kvlab.figures.parts import over_full, quality_chart, together
from kvlab.figures.saved import Saved
from kvlab.results.rows import TOGETHER

WATCHED = "snapkv:budget=0.25"
TIERED = "tiered:ram=6MB,ssd=1GB"


def _eviction_map(saved: Saved) -> Any:
    lost = positions(saved.event("evicted").filter(pl.col("policy") == WATCHED))
    request: Any = lost["request"].max()
    sizes = {}
    for kind, column in (("submitted", "prompt_tokens"), ("finished", "tokens")):
        events = saved.event(kind)
        sizes[column] = events.filter(pl.col("policy") == WATCHED, pl.col("request") == request)[column][0]
    prompt, steps = sizes["prompt_tokens"], sizes["tokens"]
    return charts.eviction_map(lost, request=request, length=prompt + steps, steps=steps)


def _tiers(saved: Saved) -> Any:
    events = (saved.event(kind) for kind in ("token", "finished", "submitted"))
    return charts.bytes_by_tier(saved.rows, *events)


ON_BUNDLED: tuple[Figure, ...] = (
    Figure(
        name="ttft-by-turn",
        title="Time to first token by turn",
        experiments=("ttft",),
        chart=lambda saved: charts.ttft_by_turn(saved.rows),
        metrics=frozenset({"ttft_ms"}),
        claims=(
            Claim(
                "At turn 15, tiered needs at most a tenth of the time of full",
                pick("ttft_ms", policy="tiered", turn=15),
                pick("ttft_ms", policy="full", turn=15),
                at_most=0.1,
                tolerance=0.5,
            ),
            Claim(
                "At turn 15, paged needs at most a tenth of the time of full",
                pick("ttft_ms", policy="paged", turn=15),
                pick("ttft_ms", policy="full", turn=15),
                at_most=0.1,
                tolerance=0.5,
            ),
            Claim(
                "A window makes prefill cheaper, but without reuse all of it is computed at every turn: rotating needs "
                "at least a third of the time of full",
                pick("ttft_ms", policy="rotating:window=512", turn=15),
                pick("ttft_ms", policy="full", turn=15),
                at_least=0.33,
                tolerance=0.3,
            ),
            Claim("tiered gives the tokens of no cache", pick("exact", policy="tiered"), at_least=1),
            Claim("paged gives the tokens of no cache", pick("exact", policy="paged"), at_least=1),
        ),
        shows="An agent's prompt grows with every turn. Without reuse all of it is computed each time; with reuse, "
        "what the turn added. The first turn is cold for everyone. Bands: least to greatest of the repeats.",
        numbers={
            "tiered-at-15": over_full("ttft_ms", "tiered", turn=15),
            "paged-at-15": over_full("ttft_ms", "paged", turn=15),
            "rotating-at-15": over_full("ttft_ms", "rotating:window=512", turn=15),
        },
    ),
    Figure(
        name="ttft-after-restart",
        title="Time to first token after a restart",
        experiments=("restart",),
        chart=lambda saved: charts.ttft_after_restart(saved.rows),
        metrics=frozenset({"ttft_ms"}),
        claims=(
            Claim(
                "The first turn of a new process needs at most a fifth of the time of the same turn without a cache",
                pick("ttft_ms", policy="tiered", phase="restart"),
                pick("ttft_ms", policy="full", turn=5),
                at_most=0.2,
                tolerance=0.5,
            ),
            Claim(
                "At that turn at least nine tenths of the prompt come back from the SSD",
                pick("cached_tokens", policy="tiered", phase="restart"),
                pick("prompt_tokens", policy="tiered", phase="restart"),
                at_least=0.9,
            ),
            Claim("What comes back gives the tokens of no cache", pick("exact", policy="tiered"), at_least=1),
        ),
        shows="Half-way through a conversation the process ends, and another one takes over the store's folder. "
        "`full` is the same turn with nothing kept.",
        numbers={
            "ttft": Number(pick("ttft_ms", policy="tiered", phase="restart"), pick("ttft_ms", policy="full", turn=5)),
            "cached": Number(
                pick("cached_tokens", policy="tiered", phase="restart"),
                pick("prompt_tokens", policy="tiered", phase="restart"),
                digits=3,
            ),
        },
    ),
    Figure(
        name="quality-by-live-bytes",
        title="Right answers by live KV",
        experiments=("quality",),
        chart=quality_chart,
        metrics=frozenset({"accuracy", "kv_bytes_live"}),
        claims=(
            Claim(
                "snapkv with a quarter of the rows answers as full does",
                pick("accuracy", policy="snapkv:budget=0.25"),
                pick("accuracy", policy="full"),
                at_least=0.95,
            ),
            Claim(
                "random with a quarter of the rows does not: the bytes alone are not what counts",
                pick("accuracy", policy="random:budget=0.25"),
                at_most=0.3,
            ),
            Claim(
                "Eight bits answer as full does",
                pick("accuracy", policy="quantized"),
                pick("accuracy", policy="full"),
                at_least=0.98,
            ),
            Claim(
                "Four bits hold at most a fifth of the live bytes of full",
                pick("kv_bytes_live", policy="quantized:bits=4", kind="retrieve"),
                pick("kv_bytes_live", policy="full", kind="retrieve"),
                at_most=0.2,
            ),
        ),
        shows="Questions about single facts in a document of 700 tokens. To the left is less memory, up is more right "
        "answers. What a window or a draw at random drops is gone for good; a codec keeps every token, coarser.",
        numbers={
            "asked": Number(pick("accuracy", "count", policy="full")),
            "snapkv-right": Number(pick("accuracy", "sum", policy="snapkv:budget=0.25")),
            "random-right": Number(pick("accuracy", "sum", policy="random:budget=0.25")),
            "eight-bits-right": Number(pick("accuracy", "sum", policy="quantized")),
            "four-bits-right": Number(pick("accuracy", "sum", policy="quantized:bits=4")),
            "two-bits-right": Number(pick("accuracy", "sum", policy="quantized:bits=2")),
            "four-bits-bytes": over_full("kv_bytes_live", "quantized:bits=4", kind="retrieve"),
        },
    ),
    Figure(
        name="eviction-map",
        title="What was evicted, and when",
        experiments=("eviction",),
        chart=_eviction_map,
        metrics=frozenset({"accuracy", "kv_bytes_live"}),
        claims=(
            Claim(
                "The answer is right with what was kept",
                pick("accuracy", policy=WATCHED),
                at_least=1,
            ),
            Claim(
                "A window of about the same size lost what was asked for",
                pick("accuracy", policy="rotating:window=128"),
                at_most=0,
            ),
            Claim(
                "A quarter of the rows hold at most two fifths of the live bytes of full",
                pick("kv_bytes_live", policy=WATCHED, kind="retrieve"),
                pick("kv_bytes_live", policy="full", kind="retrieve"),
                at_most=0.4,
            ),
        ),
        shows="One request under `snapkv:budget=0.25`, a panel for each layer and KV head. Each head keeps what the "
        "last queries of the prompt look at; no later token of that head can attend to a coloured position.",
    ),
    Figure(
        name="throughput-by-concurrency",
        title="Throughput by concurrency",
        experiments=("concurrency",),
        chart=lambda saved: charts.throughput_by_concurrency(together(saved)),
        metrics=frozenset({"tokens_per_s"}),
        claims=(
            Claim(
                "With sixteen agents, paged answers at least three times as many tokens a second as full",
                pick("tokens_per_s", policy="paged", n=16, kind=TOGETHER),
                pick("tokens_per_s", policy="full", n=16, kind=TOGETHER),
                at_least=3,
                tolerance=0.4,
            ),
            Claim(
                "paged answers more tokens a second with sixteen agents than with one",
                pick("tokens_per_s", policy="paged", n=16, kind=TOGETHER),
                pick("tokens_per_s", policy="paged", n=1, kind=TOGETHER),
                at_least=2,
                tolerance=0.4,
            ),
        ),
        shows="Agents that share a system prompt, one turn each. Tokens of all answers over the whole time, prefill "
        "included. Bars: least to greatest of the repeats.",
        numbers={
            "paged-at-16": over_full("tokens_per_s", "paged", n=16, kind=TOGETHER),
        },
    ),
    Figure(
        name="live-bytes-by-concurrency",
        title="Live KV by concurrency",
        experiments=("concurrency",),
        chart=lambda saved: charts.live_bytes_by_concurrency(together(saved)),
        metrics=frozenset({"kv_bytes_live"}),
        claims=(
            Claim(
                "With sixteen agents, paged holds at most a third of the live KV of full",
                pick("kv_bytes_live", policy="paged", n=16, kind=TOGETHER),
                pick("kv_bytes_live", policy="full", n=16, kind=TOGETHER),
                at_most=0.34,
                tolerance=0.5,
            ),
        ),
        shows="The most live KV that all sequences held at one moment. A prefix that they share is held once under "
        "`paged`.",
        numbers={
            "paged-at-16": over_full("kv_bytes_live", "paged", n=16, kind=TOGETHER),
        },
    ),
    Figure(
        name="bytes-by-tier",
        title="KV by tier over time",
        experiments=("tiers",),
        chart=_tiers,
        metrics=frozenset({"kv_bytes_ram", "kv_bytes_ssd"}),
        claims=(
            Claim(
                "What rests in memory stays within its 6 MB",
                pick("kv_bytes_ram", policy=TIERED, turn=12),
                at_most=6e6,
            ),
            Claim(
                "At the last turn the SSD holds more than memory",
                pick("kv_bytes_ssd", policy=TIERED, turn=12),
                pick("kv_bytes_ram", policy=TIERED, turn=12),
                at_least=1,
            ),
            Claim(
                "Nine tenths of the last prompt are not recomputed",
                pick("cached_tokens", policy=TIERED, turn=12),
                pick("prompt_tokens", policy=TIERED, turn=12),
                at_least=0.9,
            ),
        ),
        shows="An agent under `tiered` with little memory. Each tooth is a request; what it computed goes to RAM, and "
        "from there to the SSD. One run: there is nothing to average over time.",
    ),
)


FIGURES: tuple[Figure, ...] = (*ON_BUNDLED, *ON_SMOLLM2, *ON_CODECS, *ON_METHODS, *ON_STACK)


def chosen(names: tuple[str, ...]) -> tuple[Figure, ...]:
    """Return the figures of these names, or all. Raises RunError."""
    known = {figure.name: figure for figure in FIGURES}
    for name in names:
        if name not in known:
            raise RunError(f"no figure {name!r}; the figures are {', '.join(known)}")
    return tuple(figure for figure in FIGURES if not names or figure.name in names)
