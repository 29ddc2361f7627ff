"""Whether codecs that change rows less also change distributions less: rank correlation, and pairs at equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from kvlab.results import Row, row
from kvlab.results.intervals import bootstrap

EQUAL_BYTES = 0.1
"""Two codecs hold equal bytes where these differ by at most this share of the larger."""
UNCLEAR = "unclear"
"""The kind of pairs whose KL cannot be told apart: the 95 % interval of the difference holds 0."""


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation of two lists; equal values have the mean of their ranks."""
    ranks = [_ranks(np.asarray(one, dtype=np.float64)) for one in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    below = (values[None] < values[:, None]).sum(axis=1)
    equal = (values[None] == values[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


def rank_rows(
    workload: str,
    errors: Mapping[str, Mapping[str, float]],
    kl: Mapping[str, Sequence[float]],
    size: Mapping[str, float],
) -> Iterator[Row]:
    """Yield rank correlations over all codecs, then a row for each pair at equal bytes and each kind of error.

    Args:
        errors: for each kind of error, that of each policy.
        kl: for each policy, its KL on each item, in the same order.
        size: bytes of each policy.
    """
    policies = list(kl)
    means = {policy: float(np.mean(values)) for policy, values in kl.items()}
    for kind, of in errors.items():
        value = spearman([of[one] for one in policies], [means[one] for one in policies])
        yield row("full", workload, "rank_correlation", value, kind=kind, of="relative_error", to="kl")
    for one, other in combinations(policies, 2):
        if abs(size[one] - size[other]) > EQUAL_BYTES * max(size[one], size[other]):
            continue
        gaps = [a - b for a, b in zip(kl[one], kl[other], strict=True)]
        found = bootstrap(gaps, [str(i) for i in range(len(gaps))])
        clear = found.low > 0 or found.high < 0
        for kind, of in errors.items():
            agrees = (of[one] - of[other]) * found.mean > 0
            shown = kind if clear else f"{kind}, {UNCLEAR}"
            yield row(one, workload, "concordant", float(agrees), kind=shown, of=other)
