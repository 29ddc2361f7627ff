"""Policies whose tiers lie in a folder: which ones they are, and the same policy over another folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvlab.policies.policy import Policy
from kvlab.policies.tiers import Snapshot, Tiered


def survives_restart(policy: Policy) -> bool:
    """Whether a later process finds the KV that this policy stored."""
    return isinstance(policy.tiers, Tiered | Snapshot)


def with_ssd_folder(policy: Policy, folder: Path) -> Policy:
    """Return ``policy`` with its SSD tier in ``folder``; unchanged when it names a folder or has no SSD tier."""
    tiers = policy.tiers
    if not isinstance(tiers, Tiered | Snapshot) or tiers.dir is not None:
        return policy
    return Policy(policy.retention, policy.codec, policy.reuse, replace(tiers, dir=str(folder)))
