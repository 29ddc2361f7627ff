"""The parts of the time to first token: from events, and as a waterfall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, GREEN, GREY, ORANGE, SOFT_INK, VIOLET
from kvlab.charts.direct_labels import split_name
from kvlab.charts.style import WIDTH, Look, require, styled
from kvlab.errors import RunError

PARTS = {
    "queue": GREY.light,
    "lookup": VIOLET.light,
    "restore": GREEN.light,
    "prefill": ORANGE.light,
    "first token": BLUE.light,
}
"""The parts of TTFT in their order, with their colours."""

MOST_IN_ONE_COLUMN = 3  # panels


def ttft_parts(events: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    """Return one row a request and part: ``policy``, ``request``, ``turn``, ``part``, ``start`` and ``stop`` in ms.

    ``events`` is `Results.events` (or a recorder's `tagged`). ``queue`` is waiting for a place, ``lookup`` and
    ``restore`` are the store's, ``prefill`` computes the rest of the prompt but for its last token, and ``first
    token`` computes that one and samples. Raises RunError where there are no such events.
    """
    first = events("first_token")
    require(first, "request", "seconds", "queued")
    keys = [name for name in ("policy", "request", "conversation", "turn", "process") if name in first.columns]
    join = [name for name in ("policy", "request") if name in keys]
    first = first.filter(pl.col("seconds") > 0).unique(join, keep="first", maintain_order=True)
    if first.is_empty():
        raise RunError("no first tokens with their times: run the experiment again with this kvlab")

    def joined(frame: pl.DataFrame, kind: str, *values: pl.Expr) -> pl.DataFrame:
        found = events(kind).group_by(join, maintain_order=True).agg(*values)
        return frame.join(found, on=join, how="left", maintain_order="left")

    table = joined(first, "submitted", pl.col("t").first().alias("submitted"))
    table = joined(table, "matched", pl.col("seconds").first().alias("lookup"))
    table = joined(table, "restored", pl.col("seconds").first().alias("restore"))
    table = joined(table, "prefilled", pl.col("t").sort().alias("chunks"))
    rows: list[dict[str, Any]] = []
    for found in table.iter_rows(named=True):
        whose: dict[str, Any] = {key: found[key] for key in keys}
        whole = found["seconds"]
        before = found["queued"] + (found["lookup"] or 0) + (found["restore"] or 0)
        chunks = [t - found["submitted"] for t in found["chunks"] or []]
        computed = max((t for t in chunks if t <= whole), default=before)
        ends = [found["queued"], found["queued"] + (found["lookup"] or 0), before, max(before, computed), whole]
        start = 0.0
        for part, stop in zip(PARTS, ends, strict=True):
            rows.append({**whose, "part": part, "start": 1e3 * start, "stop": 1e3 * stop})
            start = stop
    return pl.DataFrame(rows).with_columns((pl.col("stop") - pl.col("start")).alias("ms"))


def ttft_waterfall(
    parts: pl.DataFrame,
    *,
    policies: Sequence[str] | None = None,
    turn: int | None = None,
    among: Sequence[str] | None = None,
) -> Any:
    """Draw the parts of TTFT one behind the other, a bar a turn; a panel a policy, each on its own scale.

    ``parts`` are those of `ttft_parts`, of one conversation (of several, the means are drawn). ``turn`` stands out.
    """
    require(parts, "policy", "turn", "part", "start", "stop", "ms")
    names = list(policies or parts["policy"].unique(maintain_order=True))
    data = parts.filter(pl.col("policy").is_in(names) & pl.col("turn").is_not_null())
    if data.is_empty():
        raise RunError(f"no turns of {', '.join(names)}; known are {', '.join(parts['policy'].unique())}")
    means = data.group_by("policy", "turn", "part", maintain_order=True).agg(pl.col("start", "stop", "ms").mean())
    labels = {policy: style.label for policy, style in Look(parts, among).styles.items()}
    columns = 1 if len(names) <= MOST_IN_ONE_COLUMN else 2
    width, height = (WIDTH, 320) if columns == 1 else (WIDTH * 2 // 3, 220)
    panels = []
    for name in names:
        own = means.filter(pl.col("policy") == name)
        n_turns = own["turn"].n_unique()
        whole, faded = alt.value(1.0), alt.value(0.35)
        opacity: Any = whole if turn is None else alt.condition(alt.datum.turn == turn, whole, faded)
        panels.append(
            alt.Chart(
                own,
                title=alt.TitleParams(
                    split_name(labels.get(name, name)),
                    anchor="start",
                    fontSize=12,
                    fontWeight=600,
                    color=SOFT_INK.light,
                    limit=width,
                ),
            )
            .mark_bar()
            .encode(
                x=alt.X("start:Q", title="ms since the request was accepted"),
                x2="stop:Q",
                y=alt.Y("turn:O", title="turn", axis=alt.Axis(labelAngle=0)),
                color=alt.Color(
                    "part:N", title=None, scale=alt.Scale(domain=list(PARTS), range=list(PARTS.values())), sort=None
                ),
                opacity=opacity,
                tooltip=["policy:N", "turn:Q", "part:N", alt.Tooltip("ms:Q", format=",.2f")],
            )
            .properties(width=width, height=max(40, min(26, height // n_turns) * n_turns))
        )
    chart = alt.concat(*panels, columns=columns, spacing=22) if len(panels) > 1 else panels[0]
    note = ["Each policy on its own scale."] if len(panels) > 1 else [labels.get(names[0], names[0])]
    return styled(chart, "Where the time to first token goes", note)
