"""``Oracle``: keep the rows that the continuation will really attend to, the bound of what a method can know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.policies.scorers.saved_scores import SavedScores


@dataclass(frozen=True)
class Oracle(SavedScores):
    """Rows that the answer pays the most attention to stay. It reads the future: a bound for studies, not for use.

    A score is the attention that the tokens of the answer pay to a row when no row is missing, summed over them and
    averaged over the query heads of a group: ``kvlab.caches.later_attention.continuation_attention`` measures it.
    Choosing rows by it is not the best choice possible: weights say nothing of values, and change once rows are gone.

    Args:
        scores: path of a file with the scores of this very prompt.
    """

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "bound"
