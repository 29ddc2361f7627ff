"""The error of advice that cannot be given."""

from __future__ import annotations

from kvlab.errors import KvlabError


class AdviceError(KvlabError):
    """A workload, a size or a speed that cannot be used; the message says what to write."""
