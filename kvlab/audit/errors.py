"""Errors of an audit."""

from __future__ import annotations

from kvlab.errors import KvlabError


class AuditError(KvlabError):
    """A server that cannot be audited, or a probe that could not be carried out; says what to do instead."""
