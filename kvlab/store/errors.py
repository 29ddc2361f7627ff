"""Why a tier gives no block."""

from __future__ import annotations


class TierMiss(Exception):
    """Raised by a tier that does not have the block, or no longer."""

    reason = "evicted"


class TierCorrupt(TierMiss):
    """Raised by a tier that found the block to be bad and has set it aside."""

    reason = "corrupt"
