"""``ReplayResults``: what policies hit of a trace at several capacities, as rows, a table and a chart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from kvlab.replay.counts import ReplayCounts
from kvlab.replay.shown_table import as_html, as_text
from kvlab.replay.statistics import TraceStatistics, ratio
from kvlab.replay.trace import BlockTrace

COLUMNS = ("replace", "capacity", "by token", "by block", "by request", "evicted blocks")
UNLIMITED = "unlimited"
"""In the place of a policy: a tier that holds everything."""
CURVE_POINTS = 256


@dataclass(frozen=True, eq=False)
class ReplayResults:
    """Holds the counts of all policies and capacities. In a notebook it shows itself; ``str`` is the same as text.

    Attributes:
        trace: what was replayed.
        statistics: what it holds, and what a tier without limit hits.
        counts: one for each policy and capacity.
        hits_by_capacity: hit blocks of LRU at 0, 1, ... blocks, where LRU was asked for; else empty.
        token_bytes: bytes of KV a token; 0 where unknown.
    """

    trace: BlockTrace
    statistics: TraceStatistics
    counts: tuple[ReplayCounts, ...]
    hits_by_capacity: np.ndarray
    token_bytes: int = 0

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows: ``trace``, ``replace``, ``capacity`` and ``share`` beside the columns of all rows."""
        found = self.statistics
        ratios = {
            "hit_ratio": found.by_token,
            "hit_ratio_blocks": found.by_block,
            "hit_ratio_requests": found.mean_by_token,
            "hit_ratio_requests_blocks": found.mean_by_block,
        }
        unlimited = {name: (value, "fraction") for name, value in ratios.items()}
        rows = self._rows(UNLIMITED, "inf", 1.0, 1.0, unlimited)
        for one in self.counts:
            rows += self._rows(one.replace, one.capacity.text, one.capacity.share, one.sampled, self._measured(one))
        return rows

    def _measured(self, one: ReplayCounts) -> dict[str, tuple[float, str]]:
        found: dict[str, tuple[float, str]] = {
            "hit_ratio": (one.by_token, "fraction"),
            "hit_ratio_blocks": (one.by_block, "fraction"),
            "hit_ratio_requests": (one.by_request_tokens, "fraction"),
            "hit_ratio_requests_blocks": (one.by_request, "fraction"),
            "cached_tokens": (one.cached_tokens, "tokens"),
            "prompt_tokens": (int(self.trace.input_tokens.sum()), "tokens"),
            "evicted_blocks": (one.evictions, "blocks"),
            "inserted_blocks": (one.insertions, "blocks"),
        }
        if self.token_bytes:
            size = self.trace.block_tokens * self.token_bytes
            found["evicted_bytes"] = (one.evictions * size, "bytes")
            found["inserted_bytes"] = (one.insertions * size, "bytes")
        return found

    def _rows(
        self, replace: str, capacity: str, share: float, sampled: float, found: dict[str, tuple[float, str]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "policy": "ram" if replace == UNLIMITED else f"ram:replace={replace}",
                "workload": self.trace.name,
                "metric": metric,
                "value": value,
                "unit": unit,
                "trace": self.trace.name,
                "replace": replace,
                "capacity": capacity,
                "share": share,
                "sampled": sampled,
            }
            for metric, (value, unit) in found.items()
            if value == value  # a sampled replay knows no single requests
        ]

    @property
    def table(self) -> list[dict[str, str]]:
        """The hit ratios as lines of text, best capacity last."""
        found = self.statistics
        lines = [self._line(one) for one in self.counts]
        every = (found.by_token, found.by_block, found.mean_by_token)
        shown = dict(zip(COLUMNS, (UNLIMITED, "inf", *map(_percent, every), "0"), strict=True))
        return [*lines, shown]

    def _line(self, one: ReplayCounts) -> dict[str, str]:
        values = (one.by_token, one.by_block, one.by_request_tokens)
        about = "≈" if one.sampled < 1 else ""
        cells = (one.replace, one.capacity.text, *(_percent(value, about) for value in values), f"{one.evictions:,}")
        return dict(zip(COLUMNS, cells, strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance of the rows says: the trace's own numbers."""
        own = {key: value for key, value in vars(self.statistics).items()}
        return {"trace": {"name": self.trace.name, "block_tokens": self.trace.block_tokens} | own}

    def frame(self) -> pl.DataFrame:
        """Return the rows as a Polars frame."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def curve(self) -> pl.DataFrame:
        """Return LRU's whole curve: ``replace``, ``share`` of the different blocks, ``value`` (hit ratio by block)."""
        most = len(self.hits_by_capacity) - 1
        schema = {"replace": pl.String, "share": pl.Float64, "value": pl.Float64}
        if most < 1:
            return pl.DataFrame(schema=schema)
        at = np.unique(np.rint(np.geomspace(1, most, CURVE_POINTS)).astype(np.int64))
        values = [ratio(self.hits_by_capacity[one], len(self.trace.blocks)) for one in at]
        return pl.DataFrame({"replace": ["lru"] * len(at), "share": at / most, "value": values}, schema=schema)

    def chart(self) -> Any:
        """Return an Altair chart of the hit ratio by capacity, a line a policy."""
        from kvlab.charts.hit_ratios import hit_ratio_by_capacity

        return hit_ratio_by_capacity(self.frame(), self.curve())

    def __str__(self) -> str:
        return as_text(repr(self.trace), COLUMNS, self.table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(repr(self.trace), COLUMNS, self.table)


def _percent(value: float, about: str = "") -> str:
    return f"{about}{100 * value:.2f} %" if value == value else "–"
