"""Who answers best, as far as the questions can tell: right answers of each policy, compared question by question."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from kvlab.results.rows import REQUEST
from kvlab.results.void import valid

SIGNIFICANCE = 0.05
"""Two policies differ where so many questions would part so unevenly with less than this probability by chance."""


@dataclass(frozen=True)
class Standing:
    """The accuracy of policies on the same questions.

    Args:
        right: sum of the grades of each policy, in the order of the rows.
        questions: how many were asked; a repeat of a question is not a further one.
        best: the policies with the highest sum.
        near: those with a lower sum that these questions do not tell from the best.
    """

    right: dict[str, float]
    questions: int
    best: tuple[str, ...]
    near: tuple[str, ...]

    @property
    def all_equal(self) -> bool:
        """Whether every policy has the same sum."""
        return len({round(value, 6) for value in self.right.values()}) == 1

    def score(self, policy: str) -> str:
        """Write `23 of 24`."""
        value = self.right[policy]
        return f"{value:.0f} of {self.questions}" if value == round(value) else f"{value:.1f} of {self.questions}"


def standing(rows: pl.DataFrame) -> Standing | None:
    """Rank the policies of these rows by accuracy; None where nothing was graded, or all accuracy is void.

    Two policies are told apart by a sign test over the questions that one has better than the other: the same
    questions were put to all, so the others say nothing about the difference.
    """
    graded = valid(rows).filter((pl.col("metric") == "accuracy") & pl.col("turn").is_not_null())
    if graded.is_empty():
        return None
    means = graded.group_by(*REQUEST, "policy", maintain_order=True).agg(pl.col("value").mean())
    policies = means["policy"].unique(maintain_order=True).to_list()
    table = means.pivot("policy", index=REQUEST, values="value").drop_nulls(policies)
    if table.is_empty():
        return None
    right = {policy: float(table[policy].sum()) for policy in policies}
    top = max(right.values())
    best = tuple(policy for policy in policies if right[policy] > top - 1e-9)
    others = (policy for policy in policies if policy not in best)
    near = tuple(policy for policy in others if not _told_apart(table[best[0]], table[policy]))
    return Standing(right, table.height, best, near)


def _told_apart(one: pl.Series, other: pl.Series) -> bool:
    better, worse = int((one > other).sum()), int((one < other).sum())
    return sign_test(better, worse) <= SIGNIFICANCE


def sign_test(better: int, worse: int) -> float:
    """Return the probability, by chance, of a split at least as uneven as this one (two-sided, exact)."""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)
