"""One colour per policy, the same in every chart, table and report."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What a composed policy is coloured by is its most telling module: the first of these that it has.
FAMILIES = {
    "snapkv": "#b5539c",
    "knorm": "#7b5cc4",
    "random": "#94735a",
    "rotating": "#cc4b4f",
    "quantized": "#dd8e2c",
    "tiered": "#1c9a76",
    "paged": "#2f6db5",
    "ram": "#2f6db5",
    "full": "#59626f",
}
OTHERS = ("#1aa3b5", "#8a9a2b", "#d76b98", "#4d4f9e", "#b8860b", "#5d8f5b")


def policy_colors(policies: Sequence[str]) -> dict[str, str]:
    """Return a `#rrggbb` for each policy. Further policies of one family get lighter shades of its colour."""
    colors: dict[str, str] = {}
    seen: dict[str, int] = {}
    others = 0
    for policy in dict.fromkeys(policies):
        modules = [re.split(r"[:(]", part, maxsplit=1)[0].strip() for part in policy.split("|")]
        family = next((name for name in FAMILIES if name in modules), modules[0])
        unknown = [name for name in modules if name not in FAMILIES and name != "none"]
        family = unknown[0] if unknown else family
        if family not in FAMILIES and family not in seen:
            base, others = OTHERS[others % len(OTHERS)], others + 1
        else:
            base = FAMILIES.get(family) or next(colors[p] for p in colors if family in p)
        colors[policy] = _lighter(base, min(0.3 * seen.get(family, 0), 0.7))
        seen[family] = seen.get(family, 0) + 1
    return colors


def _lighter(color: str, share: float) -> str:
    """Mix `color` with `share` of white."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)
