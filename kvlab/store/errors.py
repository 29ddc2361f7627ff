"""Why a tier gives no block."""

from __future__ import annotations


class TierMiss(Exception):
    """Raised by a tier that does not have the block, or no longer."""

    reason = "evicted"


class TierUnreadable(TierMiss):
    """Raised by a tier that has the block but cannot read it now; it is kept, and tried again later."""

    reason = "unreadable"


class TierCorrupt(TierMiss):
    """Raised by a tier that found the block to be bad and has set it aside."""

    reason = "corrupt"
