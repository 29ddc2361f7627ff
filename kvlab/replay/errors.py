"""The error of a trace or a replay that cannot be used."""

from __future__ import annotations

from kvlab.errors import KvlabError


class TraceError(KvlabError):
    """A trace that cannot be read, or a capacity, policy or share of it that cannot be replayed."""
