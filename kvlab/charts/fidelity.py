"""What a policy costs in quality for the bytes it saves."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.style import color, require, styled
from kvlab.errors import RunError

QUALITY = {
    "accuracy": "right answers",
    "kl": "KL from the uncached model (nats)",
    "exact": "answers equal token for token",
}


def quality_by_bytes(rows: pl.DataFrame, metric: str = "accuracy") -> Any:
    """Mean quality of each policy against its mean live KV: up and left is better, for ``kl`` down and left.

    ``rows`` have ``kv_bytes_live`` and the metric, `accuracy` or `kl`. Raises RunError where they have not.
    """
    require(rows, "policy", "metric", "value")
    if metric not in QUALITY:
        raise RunError(f"no quality {metric!r}; there are {', '.join(QUALITY)}")
    means = rows.filter(pl.col("metric").is_in([metric, "kv_bytes_live"])).group_by(
        "policy", "metric", maintain_order=True
    ).agg(pl.col("value").mean())  # fmt: skip
    sides = {
        name: means.filter(pl.col("metric") == name).select("policy", "value") for name in (metric, "kv_bytes_live")
    }
    data = sides["kv_bytes_live"].rename({"value": "kv_bytes"}).join(
        sides[metric].rename({"value": "quality"}), on="policy", maintain_order="left"
    )  # fmt: skip
    if data.is_empty():
        raise RunError(f"these rows have no {metric} beside kv_bytes_live of one policy")
    scale = alt.Scale(type="symlog", constant=1e-4) if metric == "kl" else alt.Scale(domain=[0, 1.05], nice=False)
    axis = alt.Axis(format="~g") if metric == "kl" else alt.Axis(format="%")
    base = alt.Chart(data.with_columns(pl.col("kv_bytes") / 1e6)).encode(
        x=alt.X("kv_bytes:Q", title="live KV of one sequence (MB, mean)", scale=alt.Scale(zero=True)),
        y=alt.Y("quality:Q", title=QUALITY[metric], scale=scale, axis=axis),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("kv_bytes:Q", title="MB", format=".3f"),
            alt.Tooltip("quality:Q", title=metric, format=".4f"),
        ],
    )
    points = base.mark_point(size=150, filled=True, opacity=1).encode(color=color(data, points=True))
    return styled(alt.layer(points), f"Quality against bytes: {QUALITY[metric]}")
