"""A panel on designs: choose agents, turns and memory, and see which one lets its agents wait least."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import altair as alt
import ipywidgets
import polars as pl

from kvlab.charts.colors import BLUE, GREY, SOFT_INK
from kvlab.charts.live import running_total
from kvlab.charts.style import WIDTH, styled
from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.results import Results, row
from kvlab.results.rows import TOGETHER
from kvlab.widgets.panel import Drawn, Panel

MB = 1e6
FIRST, TOO_LARGE = "★", "does not fit"
QUANTILE = 0.95
MOMENTS = 10_000
ROOM = 1.2  # for the numbers at the ends of the bars


def which_design_wins(one_agent: pl.DataFrame, crowds: pl.DataFrame | Mapping[int, Results]) -> Panel:
    """Show what agents wait for under each design, and whether all of them fit in memory.

    ``one_agent`` are tidy rows of one agent by turn (``ttft_ms``). ``crowds`` are rows of several agents at once, by
    their number ``n``, with those of kind ``together``, as experiments have them; or results by that number. Raises
    RunError where rows of either are missing.
    """
    several = crowds if isinstance(crowds, pl.DataFrame) else crowd_rows(crowds)
    turns, counts = _numbers(one_agent, "turn"), _numbers(several, "n")
    controls = {
        "agents": ipywidgets.SelectionSlider(value=counts[-1], options=counts, description="agents"),
        "turns": ipywidgets.SelectionSlider(value=turns[-1], options=turns, description="turns"),
        "memory": ipywidgets.BoundedIntText(value=1000, min=1, max=1_000_000, description="MB of KV"),
    }

    def draw(agents: int, turns: int, memory: int) -> Drawn:
        found = waits(one_agent, several, agents=agents, turns=turns, memory=memory)
        return Drawn(_note(found, agents, turns, memory), chart=_chart(found, agents, turns))

    return Panel(controls, draw)


def crowd_rows(runs: Mapping[int, Results]) -> pl.DataFrame:
    """Return the rows of runs by the number of their agents, with the most live KV of all together."""
    frames = []
    for n, results in runs.items():
        tokens, finished = results.events("token"), results.events("finished")
        made = [
            row(part["policy"][0], "agents", "kv_bytes_live", _most(part, finished), n=n, kind=TOGETHER)
            for part in tokens.partition_by("policy", maintain_order=True)
        ]
        frames += [results.frame().with_columns(n=pl.lit(n, pl.Int64)), Results(made, {}).frame()]
    return pl.concat(frames, how="diagonal")


def waits(one_agent: pl.DataFrame, crowds: pl.DataFrame, *, agents: int, turns: int, memory: int) -> pl.DataFrame:
    """Return what each design costs: ``session_ms``, ``p95_ms``, ``live_mb``, and whether it ``fits``.

    ``session_ms`` is the time to first token of all turns of one agent together, ``p95_ms`` that of nineteen in twenty
    requests of so many agents, ``live_mb`` the most live KV of these, and ``memory`` what there is of it, in MB.
    """
    one = ("policy", "seed", "repeat")
    session = one_agent.filter(pl.col("turn") <= turns, metric="ttft_ms").group_by(one).agg(pl.col("value").sum())
    crowd = crowds.filter(n=agents)
    together = crowd.filter(metric="kv_bytes_live", kind=TOGETHER)
    live = together.group_by("policy").agg(live_mb=pl.col("value").max() / MB)
    waiting = crowd.filter(metric="ttft_ms").group_by("policy").agg(p95_ms=pl.col("value").quantile(QUANTILE, "linear"))
    sessions = session.group_by("policy").agg(session_ms=pl.col("value").mean())
    table = sessions.join(waiting, "policy").join(live, "policy")
    if table.is_empty():
        raise RunError(f"no design has rows of one agent, and of {agents} at once with their live KV together")
    return table.with_columns(fits=pl.col("live_mb") <= memory).sort("p95_ms", "policy")


def _most(tokens: pl.DataFrame, finished: pl.DataFrame) -> float:
    """Return the most live KV; without the time before a first token, in which a request may wait and hold nothing."""
    most: Any = running_total(tokens, finished, None, most=MOMENTS)["kv_bytes"].max()
    return float(most or 0)


def _numbers(rows: pl.DataFrame, column: str) -> list[int]:
    times = rows.filter(metric="ttft_ms")[column].drop_nulls().unique().sort().to_list()
    if not times:
        raise RunError(f"no times to first token by {column!r}; give rows of kvlab.compare, or the saved ones")
    return times


def _note(found: pl.DataFrame, agents: int, turns: int, memory: int) -> str:
    able = found.filter("fits")
    if able.is_empty():
        return f"Under no design do {agents} agents fit in {memory:,} MB."
    quick, short = able.sort("p95_ms")["policy"][0], able.sort("session_ms")["policy"][0]
    out = found.filter(~pl.col("fits"))["policy"].to_list()
    left = f" Too large for {memory:,} MB: {', '.join(f'<code>{escape(one)}</code>' for one in out)}." if out else ""
    return (
        f"Least waiting with {agents} at once: <b><code>{escape(quick)}</code></b>; "
        f"over {counted(turns, 'turn')} of one: <b><code>{escape(short)}</code></b>.{left}"
    )


def _chart(found: pl.DataFrame, agents: int, turns: int) -> Any:
    kinds = (
        ("p95_ms", f"TTFT p95 of {agents} at once, ms"),
        ("session_ms", f"TTFT of {counted(turns, 'turn')}, together, ms"),
    )
    panels = [_bars(found, column, title) for column, title in kinds]
    return styled(alt.hconcat(*panels), "What agents wait for", [f"{FIRST} least · pale: {TOO_LARGE} in memory"])


def _bars(found: pl.DataFrame, column: str, title: str) -> Any:
    least = found.filter("fits")[column].min()
    best = [row["fits"] and row[column] == least for row in found.iter_rows(named=True)]
    shown = [
        f"{value:,.0f}{f' {FIRST}' if is_best else ''}" for value, is_best in zip(found[column], best, strict=True)
    ]
    data = found.with_columns(best=pl.Series(best, dtype=pl.Boolean), shown=pl.Series(shown, dtype=pl.String))
    most: Any = found[column].max()
    base = alt.Chart(data).encode(
        y=alt.Y("policy:N", title=None, sort=found["policy"].to_list(), axis=alt.Axis(labelLimit=220)),
        x=alt.X(f"{column}:Q", title=title, scale=alt.Scale(domain=[0, ROOM * most]), axis=alt.Axis(tickCount=5)),
        tooltip=["policy:N", alt.Tooltip(f"{column}:Q", format=",.0f"), alt.Tooltip("live_mb:Q", format=",.1f")],
    )
    bars = base.mark_bar().encode(
        color=alt.condition("datum.best", alt.value(BLUE.light), alt.value(GREY.light)),
        opacity=alt.condition("datum.fits", alt.value(1.0), alt.value(0.35)),
    )
    text = base.mark_text(align="left", dx=4, fontSize=11, color=SOFT_INK.light).encode(text="shown:N")
    return alt.layer(bars, text).properties(width=WIDTH // 2, height=22 * found.height)
