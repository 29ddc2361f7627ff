"""``TieredResults``: what RAM over SSD gave on a trace at several sizes, as rows and a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from kvlab.replay.shown_table import as_html, as_text
from kvlab.replay.statistics import TraceStatistics, ratio
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed
from kvlab.tiers import RAM, SSD

COLUMNS = ("replace", "ram", "ssd", "by token", "from ram", "from ssd", "ttft p50", "ttft p95", "written", "ssd years")
DEFAULT_ENDURANCE_BYTES = 600 * 10**12
"""What makers warrant for many drives of 1 TB for consumers: 600 TB written. Apple names no number for its own."""


@dataclass(frozen=True, eq=False)
class TieredResults:
    """Holds the counts of all policies and sizes. In a notebook it shows itself; ``str`` is the same as text.

    Attributes:
        trace: what was replayed.
        statistics: what it holds, and what tiers without limit hit.
        counts: one for each policy and pair of sizes.
        token_bytes: bytes of KV a token; 0 where unknown.
        speed: of the machine and the model; None: nothing is said of waits.
        endurance: bytes that may be written to the drive.
        places: requests that are served side by side; None: one after the other, and answers hold nobody up.
    """

    trace: BlockTrace
    statistics: TraceStatistics
    counts: tuple[TieredCounts, ...]
    token_bytes: int = 0
    speed: Speed | None = None
    endurance: int = field(default=DEFAULT_ENDURANCE_BYTES)
    places: int | None = None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows: ``trace``, ``replace``, ``ram``, ``ssd`` beside the columns of all rows; ``tier`` where it counts.

        What is infinite or unknown, such as the life of a drive that is not written to, has no row.
        """
        return [row for one in self.counts for row in self._rows(one)]

    def _rows(self, one: TieredCounts) -> list[dict[str, Any]]:
        about = {
            "policy": f"tiered:replace={one.replace}" if one.ssd else f"ram:replace={one.replace}",
            "workload": self.trace.name,
            "trace": self.trace.name,
            "replace": one.replace,
            "ram": one.ram.text,
            "ssd": one.ssd.text if one.ssd else "0",
        }
        rows: list[dict[str, Any]] = [
            about | {"metric": metric, "value": value, "unit": unit} for metric, value, unit in self._measured(one)
        ]
        for tier, tokens in ((RAM.name, one.ram_tokens), (SSD.name, one.ssd_tokens)):
            rows.append(about | {"metric": "cached_tokens", "value": int(tokens.sum()), "unit": "tokens", "tier": tier})
        return [row for row in rows if np.isfinite(row["value"])]

    def _measured(self, one: TieredCounts) -> list[tuple[str, float, str]]:
        found: list[tuple[str, float, str]] = [
            ("hit_ratio", one.by_token, "fraction"),
            ("of_infinite", one.of_infinite, "fraction"),
            ("cached_tokens", one.cached_tokens, "tokens"),
            ("recomputed_tokens", int(one.recomputed.sum()), "tokens"),
            ("prompt_tokens", int(self.trace.input_tokens.sum()), "tokens"),
            ("written_tokens", int(one.written_tokens.sum()), "tokens"),
            ("evicted_blocks", one.evictions, "blocks"),
        ]
        if one.spurned_tokens.any():
            found.append(("spurned_tokens", int(one.spurned_tokens.sum()), "tokens"))
        if self.token_bytes:
            found.append(("bytes_written", one.bytes_written(self.token_bytes), "bytes"))
            found.append(("ssd_years", one.ssd_years(self.token_bytes, self.endurance), "years"))
        if self.speed is not None and len(self.trace):
            alone = one.service_s(self.speed, self.token_bytes)
            waited = one.ttft_s(self.speed, self.token_bytes, self.places)
            for name, seconds in (("ttft", waited), ("ttft_alone", alone)):
                for percent in (50, 95):
                    found.append((f"{name}_p{percent}_ms", 1e3 * float(np.percentile(seconds, percent)), "ms"))
            found.append(("load", one.load(self.speed, self.token_bytes), "fraction"))
        return found

    def requests(self, one: TieredCounts) -> pl.DataFrame:
        """Return a row a request: its time, tokens by tier, what was computed and written, and its wait in ms."""
        columns: dict[str, Any] = {
            "t": self.trace.times,
            "session": self.trace.sessions,
            "prompt_tokens": self.trace.input_tokens,
            "ram_tokens": one.ram_tokens,
            "ssd_tokens": one.ssd_tokens,
            "recomputed_tokens": one.recomputed,
            "written_tokens": one.written_tokens,
        }
        if self.speed is not None:
            columns["ttft_ms"] = 1e3 * one.ttft_s(self.speed, self.token_bytes, self.places)
        return pl.DataFrame(columns)

    @property
    def table(self) -> list[dict[str, str]]:
        """The results as lines of text."""
        return [self._line(one) for one in self.counts]

    def _line(self, one: TieredCounts) -> dict[str, str]:
        asked = self.trace.input_tokens.sum()
        values = {row["metric"]: row["value"] for row in self._rows(one) if "tier" not in row}
        shares = [ratio(tokens.sum(), asked) for tokens in (one.cached, one.ram_tokens, one.ssd_tokens)]
        waits = [_seconds(values.get(f"ttft_p{percent}_ms")) for percent in (50, 95)]
        written = values.get("bytes_written")
        cells = (
            one.replace,
            one.ram.text,
            one.ssd.text if one.ssd else "0",
            *(f"{100 * share:.2f} %" for share in shares),
            *waits,
            "–" if written is None else _decimal(int(written)),
            _years(values.get("ssd_years")),
        )
        return dict(zip(COLUMNS, cells, strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance of the rows says: the trace's own numbers, and the speeds."""
        about = {"trace": {"name": self.trace.name, "block_tokens": self.trace.block_tokens} | vars(self.statistics)}
        cost = {} if self.speed is None else {"cost": vars(self.speed)}
        return about | cost | {"kv_bytes_per_token": self.token_bytes, "endurance_bytes": self.endurance}

    def frame(self) -> pl.DataFrame:
        """Return the rows as a Polars frame."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def __str__(self) -> str:
        return as_text(repr(self.trace), COLUMNS, self.table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(repr(self.trace), COLUMNS, self.table)


def _seconds(ms: float | None) -> str:
    if ms is None:
        return "–"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1e3:,.0f} s"


def _decimal(size: int) -> str:
    """Return bytes in three digits."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def _years(years: float | None) -> str:
    return "–" if years is None else f"{years:,.1f}" if years < 1000 else "over 1,000"
