"""Numbers, names and lists in sentences, as Markdown with nothing but `code` in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

MAX_NAMES = 4
"""Names in a list; of more, it says how many others there are."""


def policy_name(policy: str, labels: Mapping[str, str]) -> str:
    """Return the short name of a policy in backticks."""
    return f"`{labels.get(policy, policy).replace('`', '')}`"


def listed(names: Sequence[str]) -> str:
    """Write `a`, `b` and 3 others."""
    few = list(names) if len(names) <= MAX_NAMES else [*names[: MAX_NAMES - 1], f"{len(names) - MAX_NAMES + 1} others"]
    return few[0] if len(few) == 1 else f"{', '.join(few[:-1])} and {few[-1]}"


def marked(text: str) -> str:
    """Return the Markdown as HTML."""
    parts = escape(text, quote=False).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def ms_text(value: float) -> str:
    """Return milliseconds with their unit: `41.2 ms`."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def bytes_text(value: float) -> str:
    """Return bytes with a decimal unit: `3.9 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(f"{abs(value):.0f}") - 1) // 3))
    scaled = value / 1000**power
    return f"{scaled:.0f} {units[power]}" if power == 0 or scaled >= 100 else f"{scaled:.1f} {units[power]}"
