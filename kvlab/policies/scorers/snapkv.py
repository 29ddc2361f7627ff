"""``SnapKV``: keep the rows that the last queries attend to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer


@dataclass(frozen=True)
class SnapKV(Scorer):
    """Rows that the last ``window`` queries attend to stay, smoothed over ``kernel`` neighbours; the window stays too.

    Follows Li et al. 2024: the attention weights of the observation window over the earlier rows are summed over its
    queries, pooled along the sequence, and the best rows are kept per head. Deviations: under grouped-query attention
    the sum runs over the query heads of a group as well (the paper scores repeated KV heads one by one); averages
    instead of sums (the order is the same); while decoding the window slides with the new tokens.

    Args:
        window: queries of the observation window (the reference code uses 64 at 4,096 tokens and more).
        kernel: odd width of the pooling.
        pooling: ``avg`` (the reference code's default) or ``max``.
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "SnapKV, arXiv:2404.14469"
    window: int = 32  # type: ignore[assignment]
    kernel: int = 5
    pooling: str = "avg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise PolicyError(f"{self.name}: window={self.window} must be 1 or more")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise PolicyError(f"{self.name}: kernel={self.kernel} must be odd, such as 5")
        if self.pooling not in ("avg", "max"):
            raise PolicyError(f"{self.name}: pooling={self.pooling} is unknown; write avg or max")
        if self.budget > 1 and self.budget <= self.window:
            raise PolicyError(f"{self.name}: budget={self.budget} tokens must be above its window={self.window}")

    def score(self, context: ScoreContext) -> mx.array:
        _, kv_heads, length, _ = context.keys.shape
        weights = context.attention
        w = weights.shape[2]
        earlier = length - min(w, length)
        # The window's own rows rank above every other row, the latest first.
        own = mx.broadcast_to(2.0 + mx.arange(length - earlier, dtype=mx.float32), (1, kv_heads, length - earlier))
        if not earlier:
            return own
        group = weights.shape[1] // kv_heads * w
        votes = weights[..., :earlier].reshape(1, kv_heads, group, earlier).mean(axis=2)
        return mx.concatenate([self._pool(votes), own], axis=-1)

    def _pool(self, votes: mx.array) -> mx.array:
        """Pool along the last axis with stride 1, padded to keep its length; the average counts padding as zeros."""
        half = self.kernel // 2
        length = votes.shape[-1]
        padded = mx.pad(votes, [(0, 0), (0, 0), (half, half)])
        shifted = mx.stack([padded[..., i : i + length] for i in range(self.kernel)])
        return shifted.mean(axis=0) if self.pooling == "avg" else shifted.max(axis=0)
