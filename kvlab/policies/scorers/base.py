"""``Scorer``: retention by a score per token and head. A scorer computes scores; the live cache evicts rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module


@dataclass(frozen=True)
class ScoreContext:
    """Inputs of a scorer: one layer of one sequence (batch axis of 1), after RoPE.

    Attributes:
        keys: ``[1, n_kv_heads, length, head_dim]``, dequantized where the codec is lossy.
        values: ``[1, n_kv_heads, length, v_head_dim]``.
        positions: true positions of the rows, int32 ``[1, n_kv_heads, length]``, ascending; -1 for rows that only fill
            a head which keeps fewer rows than others.
        queries: the last queries, ``[1, n_heads, w, head_dim]`` with ``w <= Scorer.window``; None if it is 0.
        scale: the model's attention scale.
        layer: index of the layer among the model's layers, of ``n_layers``.
        offset: tokens of the sequence so far, evicted ones included.
        token_ids: tokens of the rows, int32 ``[1, n_kv_heads, length]``, where :attr:`Scorer.reads_token_ids` is set;
            -1 for the newest ones while decoding, which are not known on the host yet.
        accumulated: latest result of :meth:`Scorer.accumulate`, ``[1, n_kv_heads, length]``.
    """

    keys: mx.array
    values: mx.array
    positions: mx.array
    queries: mx.array | None
    scale: float
    layer: int
    n_layers: int
    offset: int
    token_ids: mx.array | None = None
    accumulated: mx.array | None = None

    @cached_property
    def attention(self) -> mx.array:
        """Causal attention weights of the last queries, ``[1, n_heads, w, length]``, computed at first use.

        Raises PolicyError for a scorer without a window of queries.
        """
        if self.queries is None:
            raise PolicyError("this scorer reads attention but keeps no queries: give its class a window above 0")
        _, heads, w, dim = self.queries.shape
        _, kv_heads, length, _ = self.keys.shape
        grouped = self.queries.reshape(1, kv_heads, heads // kv_heads, w, dim)
        scores = self.scale * (grouped @ mx.swapaxes(self.keys, -1, -2)[:, :, None])
        at = mx.arange(self.offset - w, self.offset)[:, None]
        place = self.positions[:, :, None, None, :]
        seen = (place >= 0) & (place <= at)
        weights = mx.softmax(mx.where(seen, scores.astype(mx.float32), -mx.inf), axis=-1)
        return weights.reshape(1, heads, w, length)


@dataclass(frozen=True)
class Scorer(Module):
    """Base of the eviction methods: keep the ``budget`` best rows of every head.

    Applied twice: at the end of the prompt (all rows are scored and the budget kept), and while decoding (when a new
    row would exceed the budget, the ``interval`` worst rows leave together; 1 is strict, more is cheaper).

    A subclass sets ``reads_all_queries`` where its score at the end of the prompt reads all queries of it, which are
    kept until then and no longer; such a prompt is always computed from its first token.

    Args:
        budget: rows that stay per head: a share of the prompt when at most 1.0, a number of tokens above.
        interval: rows that leave together while decoding.

    Raises:
        PolicyError: a budget of 0 or less, or an interval below 1.
    """

    slot: ClassVar[str] = "retention"
    reads_token_ids: ClassVar[bool] = False
    reads_all_queries: ClassVar[bool] = False
    budget: int | float = 0.5
    interval: int = 16

    def __post_init__(self) -> None:
        if self.budget <= 0 or (self.budget > 1 and self.budget != int(self.budget)):
            raise PolicyError(
                f"{self.name}: budget={self.budget} is not usable; write a share such as 0.25, or tokens such as 512"
            )
        if self.interval < 1:
            raise PolicyError(f"{self.name}: interval={self.interval} must be 1 or more")

    @property
    def window(self) -> int:
        """Number of last queries that the score needs; 0 for none."""
        return 0

    @property
    def latest_rows(self) -> int:
        """Number of newest rows that stay whatever they hold: those of the window, unless a subclass says otherwise."""
        return self.window

    @property
    def accumulates(self) -> bool:
        """Whether :meth:`accumulate` is called with the queries of every chunk and step."""
        return False

    @property
    def storage_key(self) -> str:
        """Empty, because the complete rows of the prompt are stored before the first eviction."""
        return ""

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        """Return how many rows a head may keep, on average, in ``layer`` of ``n_layers``, for ``prompt_tokens``."""
        share = isinstance(self.budget, float) and self.budget <= 1
        return max(1, round(self.budget * prompt_tokens) if share else int(self.budget))

    def targets(self, scores: mx.array, rows: int) -> int | Sequence[int]:
        """Return how many rows each KV head keeps, one number for all or one for each; ``rows`` is their average.

        ``scores`` are those of :meth:`score`. Heads that keep fewer rows are padded in front, to one width.
        """
        return rows

    def accumulate(self, accumulated: mx.array, context: ScoreContext) -> mx.array:
        """Add scores from ``context.queries``, all queries of a chunk, to ``accumulated``: ``[1, n_kv_heads, length]``.

        ``accumulated`` is the result of the last call, with zeros for new rows and without evicted ones.
        """
        raise NotImplementedError

    def score(self, context: ScoreContext) -> mx.array:
        """Return scores ``[1, n_kv_heads, length]``; rows with the highest stay. Must not change the context."""
        raise NotImplementedError
