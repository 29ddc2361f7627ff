"""Why requests compute tokens that a cache could not have, or did not: by how a prompt differs from the one before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from kvlab.replay.errors import TraceError
from kvlab.replay.shown_table import as_html, as_text
from kvlab.replay.statistics import infinite_hits, ratio
from kvlab.replay.trace import BlockTrace

APPENDED, COLD_START, EDITED_HEAD, COMPACTION, EVICTED = (
    "appended", "cold start", "edited head", "compaction", "evicted"
)  # fmt: skip
CAUSES = (APPENDED, COLD_START, EDITED_HEAD, COMPACTION, EVICTED)
CONTINUED_SHARE = 0.9
"""A prompt that shares so much of the one before continues it. In sessions of Claude Code 97 of 100 share as much, the
others mostly less than a third; so the results hardly change from 0.6 to 0.95."""
COMPACTED_SHARE = 0.75
"""One that does not, and is shorter than so much of it, was compacted. There, lengths fall to under 0.75 or stay above
0.9 in nine of ten."""
COLUMNS = ("cause", "tokens", "of all computed", "requests", "tokens a request")


@dataclass(frozen=True, eq=False)
class RecomputeCauses:
    """Holds the computed tokens of each request, and their cause. In a notebook it shows itself.

    - ``cold start``: a conversation's first prompt, without what another conversation has in common with it.
    - ``appended``: what is new behind the prompt before, of which the last tenth may be written anew.
    - ``edited head``: the prompt differs from the one before early on, and is about as long: all behind that place is
      computed again.
    - ``compaction``: it differs early, and is much shorter: a history that was summed up, or a prompt for another task.
    - ``evicted``: tokens that were computed before, and that the cache did not hold any more.

    Attributes:
        trace: what was looked at.
        cause: why each request computes what was never known, as a place in ``CAUSES``, int64 ``[requests]``.
        tokens: those tokens, int64 ``[requests]``.
        evicted: tokens of each request that were known and not found, int64 ``[requests]``.
    """

    trace: BlockTrace
    cause: np.ndarray
    tokens: np.ndarray
    evicted: np.ndarray

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows: the computed tokens, and the requests with any, by ``cause``."""
        about = {"policy": "paged", "workload": self.trace.name, "trace": self.trace.name}
        rows = []
        for cause, tokens, requests in self._sums:
            rows.append(about | {"metric": "recomputed_tokens", "value": tokens, "unit": "tokens", "cause": cause})
            rows.append(about | {"metric": "requests", "value": requests, "unit": "requests", "cause": cause})
        return rows

    @cached_property
    def _sums(self) -> list[tuple[str, int, int]]:
        found = []
        for place, cause in enumerate(CAUSES):
            own = self.evicted if cause == EVICTED else np.where(self.cause == place, self.tokens, 0)
            if own.any():
                found.append((cause, int(own.sum()), int((own > 0).sum())))
        return found

    @property
    def table(self) -> list[dict[str, str]]:
        """The causes as lines of text."""
        every = sum(tokens for _, tokens, _ in self._sums)
        return [
            dict(
                zip(
                    COLUMNS,
                    (
                        cause,
                        f"{tokens:,}",
                        f"{100 * ratio(tokens, every):.1f} %",
                        f"{requests:,}",
                        f"{tokens // requests:,}",
                    ),
                    strict=True,
                )
            )
            for cause, tokens, requests in self._sums
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance of the rows says."""
        asked = int(self.trace.input_tokens.sum())
        return {"trace": {"name": self.trace.name, "requests": len(self.trace), "input_tokens": asked}}

    @property
    def title(self) -> str:
        """What was counted, in one line."""
        computed, asked = sum(tokens for _, tokens, _ in self._sums), int(self.trace.input_tokens.sum())
        return f"{self.trace.name}: {computed:,} of {asked:,} prompt tokens are computed"

    def frame(self) -> pl.DataFrame:
        """Return the rows as a Polars frame."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def chart(self) -> Any:
        """Return an Altair chart of the causes."""
        from kvlab.charts.recompute_causes import recompute_causes as drawn

        return drawn(self.frame())

    def __str__(self) -> str:
        return as_text(self.title, COLUMNS, self.table)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return as_html(self.title, COLUMNS, self.table)


def recompute_causes(trace: BlockTrace, cached: np.ndarray | None = None) -> RecomputeCauses:
    """Say why tokens of a trace are computed.

    Args:
        cached: tokens of each request that a cache gave, int64 ``[requests]``, such as ``ReplayCounts.hit_tokens`` or
            ``TieredCounts.cached``; None: a cache that never evicts.

    Raises:
        TraceError: no conversation has a second request, so that nothing can be compared.
    """
    before = previous_requests(trace.sessions)
    if len(trace) and (before < 0).all():
        raise TraceError(f"{trace.name} says not which requests are of one conversation: causes cannot be told apart")
    known = trace.hit_tokens(infinite_hits(trace)[0])
    earlier = np.where(before < 0, 0, trace.input_tokens[np.maximum(before, 0)])
    continues = known + trace.block_tokens > CONTINUED_SHARE * earlier  # the tokens behind the last block are in none
    is_short = trace.input_tokens < COMPACTED_SHARE * earlier
    places = {name: place for place, name in enumerate(CAUSES)}
    cause = np.select(
        [before < 0, continues, is_short],
        [places[COLD_START], places[APPENDED], places[COMPACTION]],
        places[EDITED_HEAD],
    )
    evicted = np.zeros(len(trace), np.int64) if cached is None else np.maximum(known - cached, 0)
    return RecomputeCauses(trace, cause, trace.input_tokens - known, evicted)


def previous_requests(sessions: np.ndarray) -> np.ndarray:
    """Return for each request the one before it in its conversation, int64 ``[requests]``; -1 for first ones."""
    order = np.argsort(sessions, kind="stable")
    before = np.full(len(sessions), -1, np.int64)
    again = sessions[order[1:]] == sessions[order[:-1]]
    before[order[1:][again]] = order[:-1][again]
    return before
