"""Read and write durations: ``90s``, ``12h``, ``7d``."""

from __future__ import annotations

import re

from kvlab.errors import PolicyError

UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_seconds(duration: str) -> int:
    """Return the seconds of ``duration``, a whole number of days, hours, minutes or seconds, 1 second or more.

    Raises:
        PolicyError: not a duration.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([dhms]?)\s*", duration.lower())
    if not match or int(match[1]) < 1:
        raise PolicyError(f"cannot read the duration '{duration}': write a number with a unit, such as 90s, 12h or 7d")
    return int(match[1]) * UNIT_S[match[2] or "s"]


def format_seconds(seconds: int) -> str:
    """Return the text of a duration in its largest whole unit, so that equal durations are equal texts."""
    unit = next(name for name, size in UNIT_S.items() if seconds % size == 0)
    return f"{seconds // UNIT_S[unit]}{unit}"
