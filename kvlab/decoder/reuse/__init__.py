"""How a request finds earlier KV: one file for each reuse module of a policy."""

from kvlab.decoder.reuse.base import PrefixCache, make_prefix_cache, nothing_at_rest, prefix_cache_of

__all__ = ["PrefixCache", "make_prefix_cache", "nothing_at_rest", "prefix_cache_of"]
