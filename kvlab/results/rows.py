"""Tidy rows: their metrics, units and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from kvlab.errors import RunError
from kvlab.tiers import tiers

_UNITS: Mapping[str, str] = {
    "ttft_ms": "ms",
    "tpot_ms": "ms",
    "itl_p99_ms": "ms",
    "tokens_per_s": "tokens/s",
    "prompt_tokens": "tokens",
    "cached_tokens": "tokens",
    "bytes_written": "bytes",
    "restore_bytes_per_s": "bytes/s",
    "accuracy": "fraction",
    "kl": "nats",
    "top1": "fraction",
    "tool_flip": "fraction",
    "equal_call": "fraction",
    "perplexity": "x",
    "relative_error": "fraction",
    "rank_correlation": "x",
    "concordant": "bool",
    "logit_distance": "logits",
    "logit_distance_mlx_lm": "logits",
    "logit_bound": "logits",
    "hit_ratio": "fraction",
    "exact": "bool",
    "refused": "bool",
    "cut_tokens": "tokens",
    "discarded_tokens": "tokens",
    "ratio": "x",
    "loss_bound": "fraction",
    "certified": "bool",
    "text": "tokens",
}
FRACTION = "fraction"
"""The unit of grades."""
PHASES = ("cold", "warm", "restart")
TOGETHER = "together"
"""The `kind` of rows of all sequences of a run together, which belong to no turn and to no conversation."""
SCHEMA: Mapping[str, Any] = {
    "policy": pl.String,
    "workload": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "unit": pl.String,
    "turn": pl.Int64,
    "phase": pl.String,
    "n": pl.Int64,
    "budget": pl.Float64,
    "model": pl.String,
    "seed": pl.Int64,
    "conversation": pl.String,
    "kind": pl.String,
    "of": pl.String,
    "to": pl.String,
    "tokens": pl.Int64,
    "repeat": pl.Int64,
    "void": pl.String,
    "text": pl.String,
    "question": pl.String,
    "wanted": pl.String,
    "position": pl.Int64,
}
REQUEST = ("workload", "model", "seed", "n", "tokens", "conversation", "turn")
"""The columns that name a request: rows of two policies that agree in them are about the same prompt."""
SAMPLE = ("seed", "repeat")
"""The columns that tell the measurements of one policy at one point apart."""
Row = dict[str, Any]


def units() -> dict[str, str]:
    """Return the unit of every metric, the bytes of each tier among them."""
    return {**_UNITS, **{tier.metric: "bytes" for tier in tiers()}}


def row(policy: str, workload: str, metric: str, value: float, **where: Any) -> Row:
    """Return one tidy row. `where` holds values for other columns of SCHEMA; None is left out.

    Raises RunError for a metric, phase or column that the schema does not have, and for a value that is not finite.
    """
    unit = _UNITS.get(metric) or units().get(metric)
    if unit is None:
        raise RunError(f"no metric {metric!r}; the metrics are {', '.join(units())}")
    return _row(policy, workload, metric, value, unit, where)


def grade_row(policy: str, workload: str, grade: str, value: float, **where: Any) -> Row:
    """Return the row of a grade, a fraction, as `row` does; no column or metric of another unit may have its name."""
    unit = units().get(grade, FRACTION)
    taken = "a column of the rows" if grade in SCHEMA else f"a metric in {unit}" if unit != FRACTION else ""
    if taken:
        raise RunError(f"a grade is named {grade!r}, which is {taken} already; give it another name")
    return _row(policy, workload, grade, value, unit, where)


def _row(policy: str, workload: str, metric: str, value: float, unit: str, where: Mapping[str, Any]) -> Row:
    if not math.isfinite(value):
        raise RunError(f"{metric} of {policy} is {value}; leave out what was not measured")
    if where.get("phase") not in (None, *PHASES):
        raise RunError(f"no phase {where['phase']!r}; the phases are {', '.join(PHASES)}")
    if unknown := set(where) - set(SCHEMA):
        raise RunError(f"no column {min(unknown)!r}; the columns are {', '.join(SCHEMA)}")
    head = {"policy": policy, "workload": workload, "metric": metric, "value": float(value), "unit": unit}
    return head | {name: where[name] for name in SCHEMA if where.get(name) is not None and name not in head}
