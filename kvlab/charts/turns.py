"""The cost of each turn: a line a policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.axes import count_axis
from kvlab.charts.colors import PAGE
from kvlab.charts.direct_labels import GAP, Anchor, at_line_ends, name_marks
from kvlab.charts.policy_styles import DASHES, SHAPES
from kvlab.charts.style import GREY, HEIGHT, WIDTH, Look, require, styled
from kvlab.errors import RunError

MARGIN_PX = 10  # between the first or last turn and the edge
WIDEST_EXTRA_PX = 3.5  # by which the first line is wider than the last


@dataclass(frozen=True)
class Frame:
    """The turns and values of a chart, and where they lie in it, in pixels."""

    turns: tuple[float, float]
    values: tuple[float, float]
    is_log: bool

    @property
    def turn_domain(self) -> list[float]:
        low, high = self.turns
        margin = MARGIN_PX * (high - low) / (WIDTH - 2 * MARGIN_PX) if high > low else 0.5
        return [low - margin, high + margin]

    @property
    def value_domain(self) -> list[float]:
        low, high = self.values
        if self.is_log:
            return [low / 1.2, high * 1.2]
        return [0.0, 1.04 * high or 1.0]

    def x(self, turn: float) -> float:
        low, high = self.turn_domain
        return WIDTH * (turn - low) / (high - low)

    def y(self, value: float) -> float:
        low, high, value = (math.log(one) if self.is_log else one for one in (*self.value_domain, value))
        return HEIGHT * (high - value) / (high - low)


def ttft_by_turn(rows: pl.DataFrame, *, log: bool = False, among: Sequence[str] | None = None) -> alt.LayerChart:
    """Draw the time to first token at each turn, a line a policy; diamonds are first turns after a restart.

    `among` are the policies of the whole set where `rows` hold a part of them: see `kvlab.charts`.
    """
    data = _by_turn(rows, "ttft_ms")
    look, frame = Look(data, among), _frame(data, log)
    data = look.labelled(data)
    y = _values(frame, "time to first token (ms)")
    layers = [*_lines(data, look, frame, y, "ms", _bands(data, look, frame)), *_names(data, look, frame)]
    note = []
    if "restart" in data["phase"]:
        restarts = alt.Chart(data.filter(pl.col("phase") == "restart"))
        diamond: dict[str, Any] = {"shape": "diamond", "size": 170, "filled": True, "opacity": 1, "strokeWidth": 1.5}
        marks = restarts.mark_point(**diamond, stroke=PAGE.light)
        layers.append(marks.encode(x=_turns(data, frame), y=y, color=look.color(legend=False), tooltip=_tooltips("ms")))
        note = ["Diamond: the first turn after the process was restarted."]
    return styled(alt.layer(*layers), "Time to first token by turn", [*note, *_repeats_note(data)])


def cached_tokens_by_turn(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> alt.LayerChart:
    """Draw the prompt tokens that were not recomputed, by turn; the dashed line is the whole prompt."""
    data = _by_turn(rows, "cached_tokens")
    prompt = _by_turn(rows, "prompt_tokens").group_by("turn").agg(pl.col("value").mean()).sort("turn")
    span = prompt.select("turn", pl.col("value").alias("low"), pl.col("value").alias("high"))
    look, frame = Look(data, among), _frame(pl.concat([data.select("turn", "low", "high"), span]), False)
    data = look.labelled(data)
    y = _values(frame, "tokens", axis=count_axis((0, frame.value_domain[1]), 8))
    whole = (
        alt.Chart(prompt)
        .mark_line(strokeDash=[5, 4], color=GREY)
        .encode(
            x=_turns(data, frame),
            y=y,
            tooltip=[alt.Tooltip("turn:Q"), alt.Tooltip("value:Q", title="prompt tokens", format=",.0f")],
        )
    )
    layers = [whole, *_lines(data, look, frame, y, "tokens"), *_names(data, look, frame)]
    return styled(alt.layer(*layers), "Cached tokens by turn", ["Dashed, grey: the whole prompt."])


def _lines(data: pl.DataFrame, look: Look, frame: Frame, y: alt.Y, unit: str, *under: alt.Chart) -> list[Any]:
    """Draw a line with points for each policy. Earlier policies are drawn wider, so that equal lines stay visible."""
    base = alt.Chart(data).encode(x=_turns(data, frame), y=y, color=look.color(legend=False), tooltip=_tooltips(unit))
    lines = []
    styles = list({style.label: style for style in look.styles.values()}.values())
    step = min(1.3, WIDEST_EXTRA_PX / max(1, len(styles) - 1))
    for i, style in enumerate(styles):
        width = 1.7 + step * (len(styles) - 1 - i)
        look_of: dict[str, Any] = {"shape": SHAPES[style.variant]} if style.variant else {}
        point = alt.OverlayMarkDef(size=0.8 * (width + 3.5) ** 2, filled=True, opacity=1, **look_of)
        dash = {"strokeDash": DASHES[style.variant]} if style.variant else {"strokeCap": "round"}
        line = base.mark_line(strokeWidth=width, strokeJoin="round", point=point, **dash)
        lines.append(line.transform_filter(alt.datum.policy == style.label))
    return [*under, *lines]


def _names(data: pl.DataFrame, look: Look, frame: Frame) -> list[Any]:
    """Write the name of each policy behind the end of its line."""
    ends = data.sort("turn", maintain_order=True).group_by("policy", maintain_order=True).last()
    anchors = [
        Anchor(frame.x(turn), frame.y(value), policy)
        for policy, turn, value in ends.select("policy", "turn", "value").iter_rows()
    ]
    return name_marks(at_line_ends(anchors, WIDTH + 2 * GAP, HEIGHT), look.color(legend=False))


def _bands(data: pl.DataFrame, look: Look, frame: Frame) -> alt.Chart:
    """Draw the range of the repeats (other conversations, other seeds), from the least to the greatest."""
    repeated = data.filter(pl.col("count") > 1)
    return (
        alt.Chart(repeated)
        .mark_area(opacity=0.15)
        .encode(x=_turns(data, frame), y=_values(frame, "", "low"), y2="high:Q", color=look.color(legend=False))
    )


def _frame(data: pl.DataFrame, log: bool) -> Frame:
    """Return the frame of the turns and values, `low` to `high`. Raises RunError for a logarithm of 0."""
    first, last, lowest, highest = (
        float(one)
        for one in data.select(pl.min("turn"), pl.max("turn").alias("last"), pl.min("low"), pl.max("high")).row(0)
    )
    if log and lowest <= 0:
        raise RunError("a logarithmic axis has no place for times of 0; draw this chart without log=True")
    return Frame((first, last), (lowest, highest), log)


def _values(frame: Frame, title: str, field: str = "value", **more: Any) -> alt.Y:
    kind: Any = "log" if frame.is_log else "linear"
    return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(type=kind, domain=frame.value_domain, nice=False), **more)


def _turns(data: pl.DataFrame, frame: Frame) -> alt.X:
    scale = alt.Scale(domain=frame.turn_domain, nice=False)
    return alt.X("turn:Q", title="turn", axis=count_axis(data["turn"]), scale=scale)


def _tooltips(unit: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("policy:N"),
        alt.Tooltip("turn:Q"),
        alt.Tooltip("phase:N"),
        alt.Tooltip("value:Q", title=unit, format=",.1f"),
        alt.Tooltip("count:Q", title="of requests"),
    ]


def _repeats_note(data: pl.DataFrame) -> list[str]:
    return ["Bands: least to greatest of the repeats."] if (data["count"] > 1).any() else []


def _by_turn(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """Return `policy`, `turn`, `phase`, `value`, `low`, `high` and `count`; policies in the order of the rows.

    The value is the mean over conversations of the median of their repeats.
    """
    require(rows, "policy", "metric", "turn", "phase", "value")
    found = rows.filter((pl.col("metric") == metric) & pl.col("turn").is_not_null())
    if found.is_empty():
        raise RunError(f"these rows have no {metric} by turn")
    value = pl.col("value")
    each = [name for name in ("conversation", "seed", "workload", "model", "n") if name in rows.columns]
    repeats = found.group_by("policy", "turn", *each, maintain_order=True).agg(
        pl.col("phase").first(),
        value.median(),
        value.min().alias("low"),
        value.max().alias("high"),
        pl.len().alias("count"),
    )
    return repeats.group_by("policy", "turn", maintain_order=True).agg(
        pl.col("phase").first(), value.mean(), pl.col("low").min(), pl.col("high").max(), pl.col("count").sum()
    )
