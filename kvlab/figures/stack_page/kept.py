"""Which rows of the stack are saved: those that pages, figure and notebook read, of the tens of thousands measured."""

from __future__ import annotations

import polars as pl

from kvlab.figures.stack_page.measured import AGENTS, AT_THE_LIMIT, BEYOND, OVERFLOW, TURNS
from kvlab.results.rows import TOGETHER

OF_TURNS = (
    *("ttft_ms", "prompt_tokens", "cached_tokens", "accuracy", "exact"),
    *("kv_bytes_live", "kv_bytes_ram", "kv_bytes_ssd", "bytes_written"),
)


def kept(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows to save: all turns of one agent, times and sums of several, questions beyond the context.

    Rows of other workloads stay.
    """
    part, metric, kind = pl.col("workload"), pl.col("metric"), pl.col("kind")
    of_agents = (metric == "ttft_ms") | (kind == TOGETHER).fill_null(False)
    beyond = (kind == BEYOND).fill_null(False) & metric.is_in(["accuracy", *AT_THE_LIMIT])
    return rows.filter(
        pl.when(part == TURNS)
        .then(metric.is_in(OF_TURNS))
        .when(part == AGENTS)
        .then(of_agents)
        .when(part == OVERFLOW)
        .then(beyond)
        .otherwise(pl.lit(True))
    )
