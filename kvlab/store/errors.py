"""Why a tier gives no block."""

from __future__ import annotations


class TierMiss(Exception):
    """A tier does not have the block (any more)."""

    reason = "evicted"


class TierCorrupt(TierMiss):
    """A tier had the block, found it bad and set it aside."""

    reason = "corrupt"
