"""``PyramidKV``: SnapKV with more rows in the first layers than in the last."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError, PolicyWarning
from kvlab.policies.scorers.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's rows, with budgets that fall evenly from the first layer to the last; ``budget`` is their average.

    Follows Cai et al. 2024: of an average of B rows a head, the last layer keeps B / ``beta``, the first 2 B minus
    that; where this is more than a prompt of n tokens has before its window, the first keeps n - ``window``, and the
    last 2 B - (n - ``window``). Deviations, both kvpress': B counts the window (the authors' code adds it to every
    layer); where the last layer would keep fewer rows than its window, all layers keep B, as SnapKV does, which is a
    warning. That is the case, for example, at a quarter of a prompt, unless the quarter is ``beta`` windows or more.

    Args:
        beta: how much fewer rows than the average the last layer keeps; 1 is no difference.
    """

    name: ClassVar[str] = "pyramidkv"
    paper: ClassVar[str] = "PyramidKV, arXiv:2406.02069"
    beta: float = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise PolicyError(f"pyramidkv: beta={self.beta} must be 1 or more, such as 20")

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        average = super().rows(prompt_tokens, layer, n_layers)
        before_window = prompt_tokens - self.window
        if n_layers < 2 or not self.window < average < prompt_tokens:
            return average
        last = average / self.beta
        first = 2 * average - last
        if first >= before_window:
            first, last = before_window, 2 * average - before_window
        if not first >= last >= self.window:
            # The same words for every prompt, so that Python shows them once.
            warnings.warn(_no_pyramid(self), PolicyWarning, stacklevel=2)
            return average
        return round(first - layer * (first - last) / (n_layers - 1))


def _no_pyramid(scorer: PyramidKV) -> str:
    return (
        f"{scorer} keeps as many rows in every layer, as snapkv does, of a prompt of which its last layer would keep "
        f"fewer than its window of {scorer.window}: write a smaller window or beta, or a larger budget"
    )
