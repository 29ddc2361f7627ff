"""Refuses modules that say they change nothing, and that the live caches would therefore leave out."""

from __future__ import annotations

from kvlab.errors import PolicyError
from kvlab.policies import Full, Policy, Raw

PLAIN = {"retention": Full, "codec": Raw}
"""The modules of a lossless policy: it gets mlx-lm's own caches, which carry out no other."""


def check_parts(policy: Policy) -> None:
    """Raise PolicyError for a retention or codec of one's own that says ``is_lossless``: nothing would carry it out."""
    for slot, plain in PLAIN.items():
        module = getattr(policy, slot)
        if module.is_lossless and type(module) is not plain:
            raise PolicyError(
                f"'{module.name}' is a {slot} that says is_lossless, so that the live caches would leave it out: set "
                f"is_lossless = False in {type(module).__name__}, or write {plain.name}"
            )
