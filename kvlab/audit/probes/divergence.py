"""Prompts that leave an earlier one in its middle, and the size of the pieces in which a cache finds them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import user
from kvlab.audit.probe import Lab, Observation, Probe

SHARES = (0.9, 0.55, 0.3)
"""Of the first prompt, that a later one begins with; uneven, so that whole blocks do not end there by chance."""

MIN_BLOCK_TOKENS = 16
"""Three unrelated numbers of tokens have a common divisor of this size or more in fewer than 1 of 200 cases."""

DIVERGED = Sentences(
    good="An agent that goes back in its history and takes another way pays only from there on.",
    part="An agent that goes back in its history pays again for a part of what has not changed.",
    bad="An agent that goes back in its history pays for the whole prompt again.",
)


class DivergingPrompts(Probe):
    """Sends a text, then three that begin with less and less of it."""

    name, about, order = "divergence", "prompts that leave an earlier one in the middle", 30

    def run(self, lab: Lab) -> Iterator[Finding]:
        words = lab.text("divergence/base").split()
        base = lab.observe([user(" ".join(words))])
        seen = []
        for share in SHARES:
            kept = " ".join(words[: round(share * len(words))])
            turned = lab.observe([user(f"{kept} {lab.text(f'divergence/{share}', 1 - share)}")])
            seen.append(turned)
            of = f"at_{round(100 * share)}_percent"
            yield from judge(self.name, lab, turned, turned.shared_with(base), DIVERGED, of=of)
        yield self._pieces(lab, seen)

    def _pieces(self, lab: Lab, seen: Sequence[Observation]) -> Finding:
        """Return the size of the pieces that explains all three numbers of cached tokens."""
        found = [one.reported for one in seen if one.reported]
        if len(found) < 2:
            return Finding(self.name, "block_tokens", None, lab.unit, "unknown", "too few cached tokens are reported")
        common, listed = math.gcd(*found), ", ".join(map(str, found))
        if common < MIN_BLOCK_TOKENS:
            means = "The cache finds a shared beginning to the token: nothing that has not changed is computed again."
            detail = f"{listed} cached tokens have no common divisor of a block's size"
            return Finding(self.name, "block_tokens", 1, lab.unit, "good", detail, means)
        means = f"The cache finds whole blocks only: each turn computes up to {common - 1} unchanged {lab.unit} again."
        detail = f"{listed} cached tokens are multiples of {common}, which is the block or a multiple of it"
        return Finding(self.name, "block_tokens", common, lab.unit, "note", detail, means)
