"""Why a remote does not do what was asked."""

from __future__ import annotations


class RemoteTrouble(Exception):
    """Base of what a client raises; the message is one line for people."""


class RemoteDown(RemoteTrouble):
    """Raised where a remote does not answer, or answers too late."""


class RemoteRefused(RemoteTrouble):
    """Raised where a remote refuses this client: a wrong password, or missing rights."""


class RemoteFull(RemoteTrouble):
    """Raised by a write that the remote does not take, while it may still be read: it is full, or read-only."""
