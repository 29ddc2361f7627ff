"""The remote tier: KV at rest in a Redis or Valkey server, or in an object store, that several machines share."""

from kvlab.store.remote.tier import RemoteConfig

__all__ = ["RemoteConfig"]
