"""What every policy dropped of one prompt, a strip a policy, with the question and the needle marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from kvlab.charts.colors import BLUE, EMPTY, RED
from kvlab.charts.style import AXIS_LABEL_PX, Look, require, styled
from kvlab.errors import RunError

WIDTH, STRIP_HEIGHT = 640, 24
MAX_BINS = 320
"""Parts of a strip: more cannot be seen."""
AXIS = "position in the prompt and its answer"
Span = tuple[int, int]


def eviction_strips(
    evicted: Mapping[str, pl.DataFrame],
    length: int,
    *,
    question: Span | None = None,
    needles: Sequence[Span] = (),
    among: Sequence[str] | None = None,
) -> alt.LayerChart:
    """Draw, for each policy, which share of its layers and heads had dropped each position at the end of the request.

    `evicted` has the `evicted` events (`layer`, `head`, `position`) of one request of `length` tokens, by policy. The
    positions of the question and of the needles, half-open, are marked across all strips.
    """
    look = Look(pl.DataFrame({"policy": list(evicted)}, schema={"policy": pl.String}), among)
    parts = []
    for policy, frame in evicted.items():
        require(frame, "layer", "head", "position")
        parts += [{"policy": look.styles[policy].label, **part} for part in _parts(frame, length)]
    if not parts:
        raise RunError("nothing was evicted: choose a policy that evicts, or a smaller budget")
    positions = alt.Scale(domain=[0, length], nice=False)
    y = alt.Y(
        "policy:N", sort=look.labels, title=None, axis=alt.Axis(labelLimit=AXIS_LABEL_PX, ticks=False, domain=False)
    )
    strips = (
        alt.Chart(alt.InlineData(values=parts))
        .mark_rect(stroke=None, color=RED.light)
        .encode(
            x=alt.X("start:Q", title=AXIS, scale=positions),
            x2="stop:Q",
            y=y,
            opacity=alt.Opacity("gone:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0, 1])),
            tooltip=[
                alt.Tooltip("policy:N"),
                alt.Tooltip("start:Q", title="from position"),
                alt.Tooltip("stop:Q", title="to, exclusive"),
                alt.Tooltip("gone:Q", title="dropped by", format=".0%"),
            ],
        )
    )
    height = (STRIP_HEIGHT + 4) * len(look.labels)
    layers = [strips, *_marks(question, needles, positions, height)]
    note = ["Red: dropped, the stronger by the more layers and heads. Grey: kept by all."]
    if question or needles:
        named = [name for name, there in (("the question", question), ("the needle", needles)) if there]
        note = [f"{note[0]} Blue lines: {' and '.join(named)}."]
    chart = alt.layer(*layers).properties(width=WIDTH, height=height)
    return styled(chart, "What was evicted of one prompt", note, fill=EMPTY.light)


def _parts(evicted: pl.DataFrame, length: int) -> list[dict[str, Any]]:
    """Return half-open runs of positions with the share of heads that dropped them, none of them zero."""
    heads = evicted.select("layer", "head").n_unique()
    counts = evicted.select("layer", "head", "position").unique().group_by("position").len()
    gone = np.zeros(length)
    known = counts.filter(pl.col("position") < length)
    gone[known["position"].to_numpy()] = known["len"].to_numpy() / max(1, heads)
    width = -(-length // MAX_BINS)
    edges = np.arange(0, length, width)
    shares = np.add.reduceat(gone, edges) / np.diff([*edges, length])
    parts: list[dict[str, Any]] = []
    for start, share in zip(edges.tolist(), shares.round(2).tolist(), strict=True):
        stop = min(length, start + width)
        if parts and parts[-1]["stop"] == start and parts[-1]["gone"] == share:
            parts[-1]["stop"] = stop
        elif share > 0:
            parts.append({"start": start, "stop": stop, "gone": share})
    return parts


def _marks(question: Span | None, needles: Sequence[Span], scale: alt.Scale, height: int) -> list[Any]:
    """Return lines across all strips at the edges of the question and in the middle of every needle, with names."""
    where = [("needle", (start + stop) / 2) for start, stop in needles]
    where += [("question", float(edge)) for edge in question] if question else []
    if not where:
        return []
    lines = pl.DataFrame(where, schema=["what", "at"], orient="row")
    dashes = alt.StrokeDash(
        "what:N", legend=None, scale=alt.Scale(domain=["needle", "question"], range=[[1, 0], [4, 3]])
    )
    x = alt.X("at:Q", scale=scale, title=AXIS)
    rules = alt.Chart(lines).mark_rule(color=BLUE.light, strokeWidth=1.6).encode(x=x, strokeDash=dashes)
    names = [("needle", (start + stop) / 2) for start, stop in needles[:1]]
    names += [("question", (question[0] + question[1]) / 2)] if question else []
    text = (
        alt.Chart(pl.DataFrame(names, schema=["what", "at"], orient="row"))
        .mark_text(color=BLUE.light, fontSize=11, fontWeight=600, baseline="bottom", clip=False)
        .encode(x=x, y=alt.value(-3), text="what:N")
    )
    return [rules, text]
