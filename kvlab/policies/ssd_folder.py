"""Policies with tiers in a folder: whether they survive a restart, and the same policy with another folder."""

from __future__ import annotations

from pathlib import Path

from kvlab.policies.policy import Policy
from kvlab.policies.tiers import Tiers


def survives_restart(policy: Policy) -> bool:
    """Return whether a later process finds the KV that this policy stored."""
    return isinstance(policy.tiers, Tiers) and policy.tiers.survives_restart


def with_ssd_folder(policy: Policy, folder: Path) -> Policy:
    """Return ``policy`` with the files of its tiers in ``folder``, unless it names a folder or keeps no files."""
    tiers = policy.tiers
    moved = tiers.in_folder(folder) if isinstance(tiers, Tiers) else tiers
    if moved is None or moved is tiers:
        return policy
    return Policy(policy.retention, policy.codec, policy.reuse, moved)
