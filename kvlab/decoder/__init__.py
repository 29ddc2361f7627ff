"""Continuous batching under a policy: submit requests, stream tokens, get figures."""

from kvlab.decoder.decoder import Decoder
from kvlab.decoder.stream import Completion, Stream

__all__ = ["Completion", "Decoder", "Stream"]
