"""``PlanResults``: the smallest RAM and SSD that reach a target, and what else was tried."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from kvlab.replay.capacity import Capacity
from kvlab.replay.plan_target import PlanTarget
from kvlab.replay.shown_table import as_html, as_text
from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed

COLUMNS = ("ram", "ssd", "reached", "value")


@dataclass(frozen=True)
class PlanTrial:
    """Holds one replay of a plan: its sizes, its value of the target's metric, and whether that reaches the target."""

    ram: Capacity
    ssd: Capacity | None
    value: float
    is_reached: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens of RAM and of SSD."""
        return self.ram.amount, self.ssd.amount if self.ssd else 0


@dataclass(frozen=True, eq=False)
class PlanResults:
    """Holds a plan. In a notebook it shows itself; ``str`` is the same as text.

    Attributes:
        trace: what was replayed.
        target: what must be reached.
        replace: replacement policy of both tiers.
        trials: all replays.
        frontier: those that reach the target and that no other beats in both sizes, the least RAM first.
        answer: the first of these.
        token_bytes: bytes of KV a token; 0: sizes are in tokens.
        speed: of the machine and the model, where it was given.
    """

    trace: BlockTrace
    target: PlanTarget
    replace: str
    trials: tuple[PlanTrial, ...]
    frontier: tuple[PlanTrial, ...]
    answer: PlanTrial
    token_bytes: int = 0
    speed: Speed | None = None

    @cached_property
    def below(self) -> PlanTrial | None:
        """The largest trial below the answer that misses the target: with less SSD, or without SSD with less RAM."""
        ram, ssd = self.answer.sizes
        less = [
            one
            for one in self.trials
            if not one.is_reached and (one.sizes[0] == ram and one.sizes[1] < ssd or (not ssd and one.sizes[0] < ram))
        ]
        return max(less, key=lambda one: one.sizes, default=None)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows, one a trial: its sizes, ``reached``, and ``chosen``: ``answer``, ``frontier`` or nothing."""
        unit = "ms" if self.target.is_wait else "fraction"
        size = self.token_bytes or 1
        return [
            {
                "policy": f"tiered:replace={self.replace}",
                "workload": self.trace.name,
                "metric": self.target.metric,
                "value": one.value,
                "unit": unit,
                "trace": self.trace.name,
                "replace": self.replace,
                "target": self.target.text,
                "ram": one.ram.text,
                "ssd": one.ssd.text if one.ssd else "0",
                "ram_size": one.sizes[0] * size,
                "ssd_size": one.sizes[1] * size,
                "size_unit": "bytes" if self.token_bytes else "tokens",
                "reached": one.is_reached,
                "chosen": "answer" if one is self.answer else "frontier" if one in self.frontier else "",
            }
            for one in sorted(self.trials, key=lambda one: one.sizes)
        ]

    @property
    def table(self) -> list[dict[str, str]]:
        """The frontier as lines of text, and what lies just below the answer."""
        shown = [*self.frontier, *([self.below] if self.below else [])]
        return [
            {
                "ram": one.ram.text,
                "ssd": one.ssd.text if one.ssd else "0",
                "reached": "yes" if one.is_reached else "no",
                "value": self.target.shown(one.value),
            }
            for one in shown
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance of the rows says."""
        about = {"trace": {"name": self.trace.name, "block_tokens": self.trace.block_tokens}}
        cost = {} if self.speed is None else {"cost": vars(self.speed)}
        return about | cost | {"kv_bytes_per_token": self.token_bytes}

    def frame(self) -> pl.DataFrame:
        """Return the rows as a Polars frame."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def chart(self) -> Any:
        """Return an Altair chart of the sizes that reach the target."""
        from kvlab.charts.tier_sizes import tier_sizes

        return tier_sizes(self.frame())

    @property
    def title(self) -> str:
        """The answer in one line."""
        ssd = f" and {self.answer.ssd.text} of SSD" if self.answer.ssd else ", no SSD"
        return f"{self.trace.name}, {self.target.text}: {self.answer.ram.text} of RAM{ssd}"

    def __str__(self) -> str:
        return as_text(self.title, COLUMNS, self.table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self.title, COLUMNS, self.table)
