"""KV at rest: found by its tokens, kept in tiers, trusted because every read is verified."""

from kvlab.store.config import StoreConfig
from kvlab.store.keys import Namespace
from kvlab.store.matches import Match, Piece, Put, Report
from kvlab.store.read_buffers import Payload
from kvlab.store.store import Store

__all__ = ["Match", "Namespace", "Payload", "Piece", "Put", "Report", "Store", "StoreConfig"]
