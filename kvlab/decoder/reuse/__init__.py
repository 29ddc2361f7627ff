"""How a request finds earlier KV: one file a reuse module."""

from kvlab.decoder.reuse.base import PrefixCache, make_prefix_cache

__all__ = ["PrefixCache", "make_prefix_cache"]
