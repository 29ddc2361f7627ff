"""Policies with tiers in a folder: the same policy with another folder."""

from __future__ import annotations

from pathlib import Path

from kvlab.policies.policy import Policy
from kvlab.policies.tiers import Tiers


def with_ssd_folder(policy: Policy, folder: Path) -> Policy:
    """Return ``policy`` with the files of its tiers in ``folder``, unless it names a folder or keeps no files."""
    tiers = policy.tiers
    moved = tiers.in_folder(folder) if isinstance(tiers, Tiers) else tiers
    if moved is None or moved is tiers:
        return policy
    return Policy(policy.retention, policy.codec, policy.reuse, moved)
