"""Inspection of a few prompts under one policy: their tokens, their blocks, their distributions.

``request_trace`` serves them and keeps their evictions, ``tokens`` shows these as text; ``blocks`` follows KV at rest
from request to request; ``kl`` measures how far the next tokens' distributions are from the uncached ones.
"""

from kvlab.inspection.blocks import BlockResidency, follow_blocks
from kvlab.inspection.kl import divergence
from kvlab.inspection.request_trace import RequestTrace, watch

__all__ = ["RequestTrace", "BlockResidency", "divergence", "follow_blocks", "watch"]
