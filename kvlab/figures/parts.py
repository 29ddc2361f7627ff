"""What declarations of several figures share: charts of saved rows, and numbers beside those of `full`."""

from __future__ import annotations

import dataclasses
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.figures.claim import pick
from kvlab.figures.number import Number
from kvlab.figures.saved import Saved
from kvlab.policies import Policy
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


def together(saved: Saved) -> pl.DataFrame:
    """Return the rows of all sequences of a run together."""
    return saved.rows.filter(pl.col("kind") == TOGETHER)


def over_full(metric: str, policy: str, **where: Any) -> Number:
    """Return the number of a policy over that of `full`."""
    return Number(pick(metric, policy=policy, **where), pick(metric, policy="full", **where))
