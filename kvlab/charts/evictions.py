"""What was evicted: a map over positions and decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.axes import count_axis
from kvlab.charts.colors import EMPTY, FIRST_EVICTED, LAST_EVICTED
from kvlab.charts.style import WIDTH, require, styled
from kvlab.errors import RunError

MAX_LAYERS, MAX_HEADS = 6, 4  # panels of the eviction map


def eviction_map(
    evicted: pl.DataFrame,
    *,
    request: int | None = None,
    length: int | None = None,
    steps: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> alt.FacetChart:
    """Draw the positions that left the live KV by decode step, a panel per layer (down) and KV head (across).

    `evicted` are `evicted` events (`request`, `layer`, `head`, `position`, `step`) of one policy. `request` defaults to
    the one that lost most. `length` positions (of prompt and answer) and `steps` decode steps are shown, where they
    are known; else as many as there are evictions in. Of many layers and heads, a few are shown unless they are named.
    """
    require(evicted, "request", "layer", "head", "position", "step")
    if evicted.is_empty():
        raise RunError("nothing was evicted: choose a policy that evicts, or a smaller budget")
    if request is None:
        request = evicted.group_by("request").len().sort("len", "request", descending=True)["request"][0]
    data = evicted.filter(pl.col("request") == request)
    for name, wanted, most in (("layer", layers, MAX_LAYERS), ("head", heads, MAX_HEADS)):
        data = data.filter(pl.col(name).is_in(_evenly(data[name], most) if wanted is None else list(wanted)))
    if data.is_empty():
        raise RunError(f"request {request} has no evictions in these layers and heads")
    end: Any = data["position"].max()
    last: Any = data["step"].max()
    until = max(last + 1, steps or 0)
    n_heads, n_layers = data["head"].n_unique(), data["layer"].n_unique()
    width = max(130, min(WIDTH, 620 // n_heads))
    runs = _runs(data).with_columns(pl.lit(until).alias("until"))
    # Inline, because Altair refuses tables of more than 5,000 rows otherwise.
    base = alt.Chart(alt.InlineData(values=runs.to_dicts()), width=width, height=max(46, min(160, 330 // n_layers)))
    positions = alt.Scale(domain=[0, max(length or 0, end + 1)], nice=False)
    along = count_axis((0, max(length or 0, end + 1)), max(3, width // 60), labelOverlap=True)
    down = alt.Scale(domain=[0, until], reverse=True, nice=False)
    shades = alt.Scale(range=[FIRST_EVICTED.light, LAST_EVICTED.light], domain=[0, max(1, until - 1)])
    rects = base.mark_rect(stroke=None, clip=True).encode(
        x=alt.X("start:Q", title="position in the sequence", scale=positions, axis=along),
        x2="stop:Q",
        y=alt.Y("step:Q", title="step", scale=down, axis=count_axis((0, until), 5)),
        y2="until:Q",
        color=alt.Color("step:Q", scale=shades, legend=None),
        tooltip=[
            alt.Tooltip("start:Q", title="from position"),
            alt.Tooltip("stop:Q", title="to, exclusive"),
            alt.Tooltip("step:Q"),
        ],
    )
    header = alt.Header(labelExpr="'layer ' + datum.value", labelAngle=0, labelAlign="left", title=None)
    facets = rects.facet(
        row=alt.Row("layer:O", header=header),
        column=alt.Column("head:O", header=alt.Header(labelExpr="'KV head ' + datum.value", title=None)),
        spacing=10,
    )
    note = ["Coloured: gone from that decode step on (step 0 is the end of the prompt). Grey: still in the cache."]
    return styled(facets, f"What was evicted, request {request}", note, fill=EMPTY.light)


def _evenly(values: pl.Series, most: int) -> list[Any]:
    """Return the distinct values, or `most` of them from the first to the last."""
    every = values.unique().sort().to_list()
    if len(every) <= most:
        return every
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def _runs(data: pl.DataFrame) -> pl.DataFrame:
    """Return neighbouring positions that left a head at the same step, as half-open runs `start`, `stop`."""
    keys = ["layer", "head", "step"]
    ordered = data.select(*keys, "position").unique().sort(*keys, "position")
    run = (pl.col("position") - pl.int_range(pl.len()).over(keys)).alias("run")
    groups = ordered.with_columns(run).group_by(*keys, "run", maintain_order=True)
    return groups.agg(pl.col("position").min().alias("start"), (pl.col("position").max() + 1).alias("stop")).drop("run")
