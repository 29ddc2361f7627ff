"""Sums over all sequences of a run: throughput, and the peak of live KV."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab.results import Results, Row, row
from kvlab.results.rows import TOGETHER


def aggregate(results: Results) -> list[Row]:
    """Return two rows of a run of one policy: ``tokens_per_s`` and the peak of ``kv_bytes_live`` over time.

    The time counts from the first request's start to the last one's end, prefill included. A prefix that live sequences
    share counts once.
    """
    submitted, finished = results.events("submitted"), results.events("finished")
    if submitted.is_empty() or finished.is_empty():
        return []
    first = results.rows[0]
    where = {name: first[name] for name in ("n", "budget", "model", "seed") if name in first} | {"kind": TOGETHER}
    about = (first["policy"], first["workload"])
    start, end, tokens = _number(submitted["t"].min()), _number(finished["t"].max()), _number(finished["tokens"].sum())
    rows = [row(*about, "kv_bytes_live", _peak(results.events("token"), finished), **where)]
    if end > start:
        rows.append(row(*about, "tokens_per_s", tokens / (end - start), **where))
    return rows


def _peak(tokens: pl.DataFrame, finished: pl.DataFrame) -> float:
    """Return the largest sum of live KV over requests; a request of one token counts with its bytes at the end."""
    nothing = pl.lit(0, pl.Int64).alias("kv_bytes")
    # The bytes of a request come before its end: rows of equal time keep this order.
    points = pl.concat(
        [
            tokens.select("request", "t", "kv_bytes"),
            finished.select("request", "t", "kv_bytes"),
            finished.select("request", "t", nothing),
        ]
    ).sort("t", maintain_order=True)
    change = pl.col("kv_bytes") - pl.col("kv_bytes").shift(1, fill_value=0).over("request")
    return _number(points.select(change.cum_sum().max()).item())


def _number(value: Any) -> float:
    return float(value or 0)
