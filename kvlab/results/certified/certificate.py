"""``certify``: the smallest budget of each method whose loss stays below a bound, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import polars as pl

from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.policies import policy_labels
from kvlab.results.certified.losses import ItemLosses, item_losses
from kvlab.results.certified.risk_bounds import expected_bound, least_items, p_value, upper_bound
from kvlab.results.rows import Row, row

CONFIDENCE = 0.95
_CELL = "padding:3px 11px 3px 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Certified:
    """What was found of one policy.

    Attributes:
        policy: its spec; ``family`` is the spec without settings.
        kept: mean live KV as a share of that of ``full``.
        loss: mean loss of the items.
        bound: the expected loss is below this, with the confidence of the certificate.
        holds: whether the policy, and each of its family with more live KV, stays below the bound that was asked for.
    """

    policy: str
    family: str
    kept: float
    loss: float
    bound: float
    holds: bool


@dataclass(frozen=True, repr=False)
class Certificate:
    """The policies of a run against a bound of their loss, the most live bytes first.

    ``confidence`` None means the expected loss of a further item (conformal risk control), of each family by itself;
    else the bound holds for all families at once with this confidence.
    """

    workload: str
    metric: str
    kind: str | None
    at_most: float
    confidence: float | None
    items: int
    policies: tuple[Certified, ...]

    @property
    def smallest(self) -> Certified | None:
        """The policy with the fewest live bytes that holds; None where only ``full`` does."""
        holding = [one for one in self.policies if one.holds]
        return min(holding, key=lambda one: one.kept) if holding else None

    def by_family(self) -> dict[str, Certified | None]:
        """Return the smallest policy of each family that holds, or None."""
        found: dict[str, Certified | None] = {one.family: None for one in self.policies}
        return found | {one.family: one for one in self.policies if one.holds}

    def frame(self) -> pl.DataFrame:
        """Return ``policy``, ``family``, ``kept``, ``loss``, ``bound``, ``holds``, a row a policy."""
        return pl.DataFrame([vars(one) for one in self.policies])

    def rows(self) -> list[Row]:
        """Return tidy rows: ``loss_bound`` of each policy, and whether it is ``certified``; ``of`` names the metric."""
        return [
            row(one.policy, self.workload, name, value, of=self.metric, kind=self.kind)
            for one in self.policies
            for name, value in (("loss_bound", one.bound), ("certified", float(one.holds)))
        ]

    def sentence(self) -> str:
        """Return what was found, in one sentence."""
        found = self.smallest
        what = self.metric if self.kind is None else f"{self.metric} of {self.kind}"
        sure = "as expected for a further item" if self.confidence is None else f"with {self.confidence:.0%} confidence"
        if found is None:
            return f"No policy but full loses at most {self.at_most:.3g} of {what} {sure} ({self._count()})."
        return (
            f"{self._labels()[found.policy]} keeps {found.kept:.0%} of the live KV and loses at most "
            f"{self.at_most:.3g} of {what} {sure} ({self._count()})."
        )

    def __repr__(self) -> str:
        head, lines = self._lines()
        table = [head, *lines]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        drawn = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table]
        return "\n".join([self.sentence(), "", drawn[0], "─" * len(drawn[0]), *drawn[1:]])

    def _repr_html_(self) -> str:
        head, lines = self._lines()
        left = _CELL.replace("right", "left")
        styles = [left, *[_CELL] * (len(head) - 1)]
        rows = "".join(
            "<tr>" + "".join(f"<td style='{s}'>{escape(c)}</td>" for s, c in zip(styles, line, strict=True)) + "</tr>"
            for line in lines
        )
        top = "".join(f"<th style='{s};font-weight:600'>{escape(c)}</th>" for s, c in zip(styles, head, strict=True))
        return (
            f"<p>{escape(self.sentence())}</p><table class='kvlab' style='border-collapse:collapse;color:inherit'>"
            f"<thead style='border-bottom:1px solid #8886'><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def _lines(self) -> tuple[list[str], list[list[str]]]:
        labels = self._labels()
        lines = [
            [
                labels[one.policy],
                f"{one.kept:.1%}",
                f"{one.loss:.3g}",
                f"{one.bound:.3g}",
                "holds" if one.holds else "does not hold",
            ]
            for one in self.policies
        ]
        return ["policy", "live KV", "mean loss", "below", f"at most {self.at_most:.3g}"], lines

    def _labels(self) -> dict[str, str]:
        return policy_labels([one.policy for one in self.policies])

    def _count(self) -> str:
        return counted(self.items, "item")


def certify(
    rows: pl.DataFrame,
    metric: str,
    *,
    at_most: float,
    confidence: float | None = CONFIDENCE,
    kind: str | None = None,
) -> Certificate:
    """Find the policies of one workload's rows whose loss by ``metric`` is at most ``at_most``.

    The loss of an item is ``tool_flip`` itself, the rest to 1 of ``equal_call``, ``top1`` and ``exact``, and of a grade
    such as ``accuracy`` what ``full`` has more. Policies of one family are tested from the most live bytes to the
    fewest, until one fails (fixed sequence testing, Angelopoulos et al., Learn then Test, 2021): so no correction is
    needed within a family, and losses may rise and fall with the budget. The families share the error (Bonferroni).
    With ``confidence=None`` the bound is that of conformal risk control (Angelopoulos et al. 2022) for the expected
    loss of one further item, drawn as these were. Losses are made to rise as budgets shrink there: that of a policy is
    the greatest among those with as many live bytes or more.

    Raises RunError where the bound or the confidence is not between 0 and 1, and where there are too few items for any
    policy to hold.
    """
    if not 0.0 < at_most < 1.0:
        raise RunError(f"at_most is {at_most:g}; write a share between 0 and 1, such as 0.01")
    if confidence is not None and not 0.0 < confidence < 1.0:
        raise RunError(f"confidence is {confidence:g}; write a share between 0 and 1, such as 0.95, or None")
    return certified(item_losses(rows, metric, kind), metric, at_most, confidence, kind)


def certified(
    losses: ItemLosses, metric: str, at_most: float, confidence: float | None, kind: str | None = None
) -> Certificate:
    """Return the certificate of these losses; see :func:`certify`."""
    items, families = losses.values.shape[1], list(dict.fromkeys(losses.families))
    level = None if confidence is None else (1.0 - confidence) / len(families)
    needed = least_items(at_most, None if level is None else 1.0 - level)
    if items < needed:
        sure = "expected" if confidence is None else f"with {confidence:.0%} confidence"
        raise RunError(
            f"{counted(items, 'item')} cannot show a loss of at most {at_most:g} {sure} for "
            f"{counted(len(families), 'method')}, not even where nothing is lost; measure {needed} or more"
        )
    found: list[Certified] = []
    for name in families:
        chosen = [index for index, one in enumerate(losses.families) if one == name]
        found += _family(losses, chosen, at_most, level)
    found.sort(key=lambda one: -one.kept)
    return Certificate(losses.workload, metric, kind, at_most, confidence, items, tuple(found))


def _family(losses: ItemLosses, chosen: list[int], at_most: float, level: float | None) -> list[Certified]:
    """Test the policies of one family, the most live bytes first."""
    found, greatest, holding = [], np.zeros(losses.values.shape[1]), True
    for index in chosen:
        own = losses.values[index]
        greatest = np.maximum(greatest, own)
        if level is None:
            bound = expected_bound(greatest)
            holding = holding and bound <= at_most
        else:
            bound = upper_bound(own, level)
            holding = holding and p_value(own, at_most, level) <= level
        found.append(
            Certified(
                losses.policies[index],
                losses.families[index],
                losses.kept[index],
                float(own.mean()),
                bound,
                holding,
            )
        )
    return found
