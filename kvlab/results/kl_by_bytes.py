"""KL of codecs by the bytes that they store: a point for each policy, with its interval."""

from __future__ import annotations

import polars as pl

from kvlab.errors import RunError
from kvlab.results.intervals import bootstrap

REFERENCE = "full"


def kl_by_stored_share(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return `policy`, `share`, `kl`, `low`, `high`, `items`, in the order of the rows; ``full`` is left out.

    Args:
        kind: of the rows of ``kv_bytes_live`` that count; `share` is their mean over that of ``full``.

    `low` and `high` bound the mean KL with 95 % confidence, by bootstrap over conversations. Raises RunError without
    KL, or without bytes of this kind.
    """
    held = rows.filter(pl.col("metric") == "kv_bytes_live", pl.col("kind") == kind)
    means = dict(held.group_by("policy").agg(pl.col("value").mean()).iter_rows())
    if REFERENCE not in means:
        raise RunError(f"these rows have no kv_bytes_live of {REFERENCE} of the kind {kind!r}")
    answers = rows.filter(pl.col("metric") == "kl", pl.col("position").is_null(), pl.col("policy") != REFERENCE)
    points = []
    for (policy,), mine in answers.group_by("policy", maintain_order=True):
        found = bootstrap(mine["value"].to_list(), mine["conversation"].to_list())
        points.append((policy, means[policy] / means[REFERENCE], found.mean, found.low, found.high, found.items))
    if not points:
        raise RunError("these rows have no kl of another policy than full")
    return pl.DataFrame(points, schema=["policy", "share", "kl", "low", "high", "items"], orient="row")
