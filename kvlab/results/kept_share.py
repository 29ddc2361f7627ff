"""Right answers by the share of KV that stays live: a point for each policy and workload, with its interval."""

from __future__ import annotations

import polars as pl

from kvlab.errors import RunError
from kvlab.results.intervals import bootstrap

REFERENCE = "full"


def accuracy_by_kept_share(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `workload`, `policy`, `kept`, `accuracy`, `low`, `high`, `items`; workloads and policies in their order.

    `kept` is the mean live KV over that of ``full`` in the same workload; `low` and `high` bound the mean accuracy with
    95 % confidence, by bootstrap over conversations. Raises RunError without accuracy, live KV or ``full``.
    """
    points = []
    for (workload,), some in rows.group_by("workload", maintain_order=True):
        live = {policy: mean for policy, mean in _mean(some, "kv_bytes_live").iter_rows()}
        if REFERENCE not in live:
            raise RunError(f"the rows of {workload} have no live KV of {REFERENCE}, of which the others keep a share")
        answers = some.filter(pl.col("metric") == "accuracy")
        for (policy,), mine in answers.group_by("policy", maintain_order=True):
            items = [f"{seed}/{one}" for seed, one in mine.select("seed", "conversation").iter_rows()]
            found = bootstrap(mine["value"].to_list(), items, share=True)
            kept = live[policy] / live[REFERENCE]
            points.append((workload, policy, kept, found.mean, found.low, found.high, found.items))
    if not points:
        raise RunError("these rows have no accuracy: the workload has no known answers")
    names = ("workload", "policy", "kept", "accuracy", "low", "high", "items")
    return pl.DataFrame(points, schema=names, orient="row")


def _mean(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Return `policy` and the mean value of the turns."""
    of_turns = rows.filter(pl.col("metric") == metric, pl.col("turn").is_not_null())
    return of_turns.group_by("policy", maintain_order=True).agg(pl.col("value").mean())
