"""The loss of each item under each policy: what a policy took from the answer of ``full``, in [0, 1]."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from kvlab.errors import RunError
from kvlab.results.rows import FRACTION, TOGETHER
from kvlab.results.void import valid
from kvlab.results.wording import listed

REFERENCE = "full"
ITEM = ("seed", "conversation")
"""The columns that name an item of a workload: items are drawn, their turns and repeats are not."""
IS_LOSS = ("tool_flip",)
"""Metrics that are a loss themselves."""
IS_AGREEMENT = ("equal_call", "top1", "exact")
"""Metrics that say how far a policy agrees with ``full``: the loss is the rest to 1. Of others, such as accuracy, the
loss is what ``full`` has more."""


@dataclass(frozen=True)
class ItemLosses:
    """Losses of the same items under policies, the most live bytes first.

    Attributes:
        policies: names; ``full`` is not among them.
        families: of each policy, its modules without their settings: the budgets of one method are one family.
        kept: of each policy, its mean live KV as a share of that of ``full``.
        values: float64 ``[policies, items]``.
    """

    workload: str
    policies: tuple[str, ...]
    families: tuple[str, ...]
    kept: tuple[float, ...]
    values: np.ndarray

    def of_items(self, chosen: np.ndarray) -> ItemLosses:
        """Return the losses of some items, by their indices ``[chosen]``."""
        return ItemLosses(self.workload, self.policies, self.families, self.kept, self.values[:, chosen])


def item_losses(rows: pl.DataFrame, metric: str, kind: str | None = None) -> ItemLosses:
    """Return the losses by ``metric`` of all policies of the rows of one workload.

    Raises RunError where the rows are of several workloads or kinds, lack the metric, ``full`` or its live KV, or where
    the metric has no bound (such as kl).
    """
    found = valid(rows).filter(
        (pl.col("metric") == metric)
        & pl.col("conversation").is_not_null()
        & (pl.col("kind").is_null() | (pl.col("kind") != TOGETHER))
    )
    if found.is_empty() and metric in set(rows["metric"]):
        raise RunError(f"{metric} says nothing here, as {REFERENCE} itself fails the task; choose one that it can do")
    if found.is_empty():
        raise RunError(f"these rows have no {metric} of single items; {_shares(rows)}")
    _check(found, metric, kind)
    if kind is not None:
        found = found.filter(pl.col("kind") == kind)
    means = found.group_by(*ITEM, "policy", maintain_order=True).agg(pl.col("value").mean())
    policies = means["policy"].unique(maintain_order=True).to_list()
    if metric not in (*IS_LOSS, *IS_AGREEMENT) and REFERENCE not in policies:
        raise RunError(f"the loss of {metric} is what {REFERENCE} has more; measure {REFERENCE} beside the others")
    table = means.pivot("policy", index=ITEM, values="value").drop_nulls(policies)
    kept = _kept(rows)
    others = sorted((policy for policy in policies if policy != REFERENCE), key=lambda one: -kept[one])
    if not others:
        raise RunError(f"only {REFERENCE} was measured; measure a policy with a budget beside it")
    values = np.stack([_loss(table, policy, metric) for policy in others])
    families = tuple(family(policy) for policy in others)
    shares = tuple(kept[policy] for policy in others)
    return ItemLosses(found["workload"][0], tuple(others), families, shares, values)


def family(policy: str) -> str:
    """Return the modules of a policy without their settings, such as ``adakv(snapkv)|quantized``."""
    return re.sub(r":[^|()]*", "", policy)


def _loss(table: pl.DataFrame, policy: str, metric: str) -> np.ndarray:
    values = table[policy].to_numpy().astype(np.float64)
    if metric in IS_LOSS:
        return values
    if metric in IS_AGREEMENT:
        return 1.0 - values
    return np.maximum(table[REFERENCE].to_numpy().astype(np.float64) - values, 0.0)


def _check(found: pl.DataFrame, metric: str, kind: str | None) -> None:
    units = set(found["unit"])
    if not units <= {FRACTION, "bool"}:
        raise RunError(f"{metric} is in {listed(sorted(units))} and has no upper bound; {_shares(found)}")
    workloads = found["workload"].unique(maintain_order=True).to_list()
    if len(workloads) > 1:
        raise RunError(f"rows of {listed(workloads)}: one bound holds for the items of one workload; choose its rows")
    kinds = found["kind"].drop_nulls().unique(maintain_order=True).to_list()
    if kind is not None and kind not in kinds:
        raise RunError(f"{metric} has no kind {kind!r}; {'its kinds are ' + listed(kinds) if kinds else 'it has none'}")
    if kind is None and metric in IS_LOSS and len(kinds) > 1:
        raise RunError(f"{metric} has the kinds {listed(kinds)}; choose one")


def _shares(rows: pl.DataFrame) -> str:
    shares = rows.filter(pl.col("unit") == FRACTION)["metric"].unique(maintain_order=True).to_list()
    return f"choose {listed(shares)}" if shares else "measure a share, such as accuracy or equal_call"


def _kept(rows: pl.DataFrame) -> dict[str, float]:
    """Return the mean live KV of each policy as a share of that of ``full``."""
    live = rows.filter((pl.col("metric") == "kv_bytes_live") & pl.col("conversation").is_not_null())
    means = dict(live.group_by("policy", maintain_order=True).agg(pl.col("value").mean()).iter_rows())
    if REFERENCE not in means:
        raise RunError(f"these rows have no live KV of {REFERENCE}, of which the others keep a share; measure it too")
    return {policy: value / means[REFERENCE] for policy, value in means.items()}
