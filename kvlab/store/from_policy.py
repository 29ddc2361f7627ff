"""The store that a policy describes."""

from __future__ import annotations

from pathlib import Path

from kvlab.paths import home
from kvlab.policies import Paged, Policy, Ram, Snapshot, Tiered, parse_bytes
from kvlab.store.store import Store


def open_store(policy: Policy) -> Store | None:
    """The store that the policy's tiers describe; None where it keeps nothing at rest."""
    reuse, tiers = policy.reuse, policy.tiers
    if not isinstance(reuse, Paged):
        return None
    if isinstance(tiers, Tiered | Snapshot):
        write, admit, daily = ("snapshot", 1, None)
        if isinstance(tiers, Tiered):
            write, admit, daily = tiers.write, tiers.admit, tiers.daily
        return Store(
            block=reuse.block,
            ram=parse_bytes(tiers.ram),
            ssd=parse_bytes(tiers.ssd),
            directory=Path(tiers.dir).expanduser() if tiers.dir else home() / "store",
            replace=tiers.replace,
            write=write,
            admit=admit,
            write_cap=parse_bytes(daily) if daily else None,
        )
    if isinstance(tiers, Ram):
        return Store(block=reuse.block, ram=parse_bytes(tiers.ram), replace=tiers.replace)
    return None
