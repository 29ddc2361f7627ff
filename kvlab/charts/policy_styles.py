"""How each policy looks: its label, colour, dash and shape, the same in every chart, table and report of a set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvlab.charts.colors import BLUE, GREEN, GREY, OLIVE, ORANGE, PLUM, RED, SERIES, VIOLET, Tone

# A composed policy is of the method of its most telling module: the first of these that it has.
METHODS = {
    "snapkv": PLUM,
    "knorm": VIOLET,
    "random": OLIVE,
    "rotating": RED,
    "quantized": ORANGE,
    "tiered": GREEN,
    "paged": BLUE,
    "ram": BLUE,
    "full": GREY,
}
FREE = (BLUE, GREEN, ORANGE, RED, PLUM, VIOLET, OLIVE, GREY)
"""The order in which other methods take a colour."""

DASHES = ([1, 0], [7, 4], [2, 3], [12, 4, 2, 4])
"""Dashes of lines that share a colour."""
SHAPES = ("circle", "square", "triangle-up", "cross")
"""Shapes of points that share a colour; a diamond is a restart."""


@dataclass(frozen=True)
class PolicyStyle:
    """The look of one policy: ``variant`` is the index of its dash and shape."""

    label: str
    tone: Tone
    variant: int

    @property
    def color(self) -> str:
        """The colour on a light page."""
        return self.tone.light


def policy_styles(policies: Iterable[str]) -> dict[str, PolicyStyle]:
    """Return the style of each policy, in the order given; it depends on the whole set.

    As many policies as there are colours get a colour each. Of more, the settings of one method share a colour, and
    dash and shape tell them apart.
    """
    from kvlab.policies.labels import policy_labels  # brings MLX, which charts do not need to be imported

    names = list(dict.fromkeys(policies))
    labels = policy_labels(names)
    groups = _groups(names)
    tones = _tones(groups)
    used: Counter[Tone] = Counter()
    styles: dict[str, PolicyStyle] = {}
    for name in names:
        tone = tones[groups[name]]
        styles[name] = PolicyStyle(labels[name], tone, used[tone] % len(DASHES))
        used[tone] += 1
    return styles


def policy_colors(policies: Sequence[str]) -> dict[str, str]:
    """Return a `#rrggbb` for each policy, as on a light page. It depends on the whole set: see `policy_styles`."""
    return {name: style.color for name, style in policy_styles(policies).items()}


def method_of(policy: str) -> str:
    """Return the name of the most telling module: one that is not in METHODS, else the first of them."""
    modules = [re.split(r"[:(]", part, maxsplit=1)[0].strip() for part in policy.split("|")]
    unknown = [name for name in modules if name not in METHODS and name != "none"]
    return unknown[0] if unknown else next((name for name in METHODS if name in modules), modules[0])


Group = tuple[str, int]
"""A method, and which of its groups: one colour has so many dashes only."""


def _groups(names: Sequence[str]) -> dict[str, Group]:
    """Return what each policy shares its colour with: nothing where there are enough colours."""
    seen: Counter[str] = Counter()
    size = 1 if len(names) <= len(SERIES) else len(DASHES)
    groups = {}
    for name in names:
        method = method_of(name)
        groups[name] = (method, seen[method] // size)
        seen[method] += 1
    return groups


def _tones(groups: dict[str, Group]) -> dict[Group, Tone]:
    """Return a colour for each group: the method's own for its first, then those that are free, then the least used."""
    wanted = list(dict.fromkeys(groups.values()))
    tones: dict[Group, Tone] = {}
    for method, part in wanted:
        own = METHODS.get(method)
        if part == 0 and own is not None and own not in tones.values():
            tones[method, part] = own
    for group in wanted:
        if group not in tones:
            used = Counter(tones.values())
            tones[group] = min(FREE, key=lambda tone: used[tone])
    return tones
