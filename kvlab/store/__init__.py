"""KV at rest: found by its tokens, kept in RAM and on SSD, trusted because every read is verified."""

from kvlab.store.keys import Namespace
from kvlab.store.reading import Payload
from kvlab.store.store import Store
from kvlab.store.types import Match, Piece, Put, Report

__all__ = ["Match", "Namespace", "Payload", "Piece", "Put", "Report", "Store"]
