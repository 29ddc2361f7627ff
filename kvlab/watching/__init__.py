"""Looking closely at a few prompts under one policy: their tokens, their blocks, their distributions.

``prompts`` serves them and keeps what was evicted, ``tokens`` shows it as text; ``blocks`` follows KV at rest from
request to request; ``kl`` measures how far the next tokens' distributions are from the uncached ones.
"""

from kvlab.watching.blocks import Whereabouts, follow_blocks
from kvlab.watching.kl import divergence
from kvlab.watching.prompts import Watched, watch

__all__ = ["Watched", "Whereabouts", "divergence", "follow_blocks", "watch"]
