"""What declarations of several figures share: charts of saved rows, and numbers beside those of `full`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.figures.claim import pick
from kvlab.figures.number import Number
from kvlab.figures.saved import Saved
from kvlab.policies import Policy, Scorer
from kvlab.results.kept_share import accuracy_by_kept_share
from kvlab.results.rows import TOGETHER


def quality_chart(saved: Saved) -> Any:
    """Draw right answers by live KV, each point with the setting that makes its policy lossy."""
    settings = {policy: _setting(policy) for policy in saved.rows["policy"].unique()}
    return charts.quality_by_live_bytes(saved.rows, settings)


def _setting(policy: str) -> str:
    """Return the first parameter of the module that makes a policy lossy: its budget, window or bits."""
    parsed = Policy.parse(policy)
    lossy = parsed.codec if parsed.retention.name == "full" else parsed.retention
    values = [str(getattr(lossy, field.name)) for field in dataclasses.fields(lossy)]
    return f"{values[0]} bits" if lossy is parsed.codec and values else values[0] if values else ""


def method_ranking(rows: pl.DataFrame, titles: Mapping[str, str]) -> Any:
    """Draw right answers by method: the rows of policies that evict by scores, whose budget is a share.

    The budget is that of the rows, where they have one: a method with a threshold has none of its own.
    """
    found, budgets = accuracy_by_kept_share(rows), dict(rows.select("policy", "budget").unique().iter_rows())
    methods = {policy: method_and_budget(policy) for policy in found["policy"].unique()}
    data = found.filter(pl.col("policy").is_in([policy for policy, one in methods.items() if one is not None]))
    named = [(methods[policy] or ("", 0.0), budgets[policy]) for policy in data["policy"]]
    return charts.accuracy_by_method(
        data.with_columns(
            pl.Series("method", [name for (name, _), _ in named]),
            pl.Series("budget", [budget if of_rows is None else of_rows for (_, budget), of_rows in named]),
        ),
        titles,
    )


def method_and_budget(policy: str) -> tuple[str, float] | None:
    """Return a scorer's name, with the scorer in its parentheses, and its budget; None for other policies."""
    scorer = Policy.parse(policy).retention
    if not isinstance(scorer, Scorer):
        return None
    inner = getattr(scorer, "scorer", None)
    return (f"{scorer.name}({inner.name})" if inner is not None else scorer.name), float(scorer.budget)


def together(saved: Saved) -> pl.DataFrame:
    """Return the rows of all sequences of a run together."""
    return saved.rows.filter(pl.col("kind") == TOGETHER)


def over_full(metric: str, policy: str, **where: Any) -> Number:
    """Return the number of a policy over that of `full`."""
    return Number(pick(metric, policy=policy, **where), pick(metric, policy="full", **where))
