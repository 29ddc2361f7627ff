"""``coverage``: whether certificates keep their promise, by items that they were not made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from kvlab.errors import RunError
from kvlab.results.certified.certificate import CONFIDENCE, certified
from kvlab.results.certified.losses import item_losses

SPLITS = 200


@dataclass(frozen=True)
class Coverage:
    """What certificates from one half of the items promised, and what the other half lost.

    Attributes:
        splits: how often the items were split at random.
        at_most: the bound that was asked for.
        mean_loss: of the other halves under the policy with the fewest live bytes that held; that of ``full`` is 0.
        above: share of the splits whose other half lost more than the bound. A half is a sample itself: where a policy
            loses just the bound, every second half is above it by chance.
        chosen: how often each policy was the smallest that held.
    """

    splits: int
    at_most: float
    mean_loss: float
    above: float
    chosen: dict[str, int]


def coverage(
    rows: pl.DataFrame,
    metric: str,
    *,
    at_most: float,
    confidence: float | None = CONFIDENCE,
    kind: str | None = None,
    splits: int = SPLITS,
    seed: int = 0,
) -> Coverage:
    """Certify with a random half of the items and look at the other half, ``splits`` times.

    Raises RunError as :func:`certify` does, where half of the items are too few.
    """
    if splits < 1:
        raise RunError(f"splits is {splits}; write 1 or more")
    losses = item_losses(rows, metric, kind)
    items = losses.values.shape[1]
    drawn = np.random.default_rng(seed)
    lost: list[float] = []
    chosen: dict[str, int] = {}
    for _ in range(splits):
        order = drawn.permutation(items)
        one, other = order[: items // 2], order[items // 2 :]
        found = certified(losses.of_items(one), metric, at_most, confidence, kind).smallest
        name = "full" if found is None else found.policy
        chosen[name] = chosen.get(name, 0) + 1
        lost.append(0.0 if found is None else float(losses.values[losses.policies.index(name)][other].mean()))
    values = np.array(lost)
    return Coverage(splits, at_most, float(values.mean()), float((values > at_most).mean()), chosen)
