"""Open the store that a policy describes.

A new module of the ``tiers`` slot adds the configuration that it stands for: ``@store_config.register(MyTiers)``.
"""

from __future__ import annotations

from functools import singledispatch
from pathlib import Path

from kvlab.errors import StoreError
from kvlab.paths import home
from kvlab.policies import Module, Paged, Policy, Ram, Snapshot, Tiered, parse_bytes
from kvlab.policies.durations import parse_seconds
from kvlab.policies.tiers import Tiers
from kvlab.store.answer_files import AnswerFiles
from kvlab.store.config import StoreConfig
from kvlab.store.protocols import TierConfig
from kvlab.store.remote import RemoteConfig
from kvlab.store.ssd import marker
from kvlab.store.ssd.tier import SsdConfig
from kvlab.store.store import Store
from kvlab.tiers import RAM

ANSWER_SHARE = 64
"""The tokens of answers get one byte beside so many of blocks."""
MAX_ANSWER_FILE_BYTES = 256 << 20
"""Most bytes that they get."""


def open_store(policy: Policy) -> Store | None:
    """Open the store of a policy's tiers; None where the policy keeps nothing at rest. Raises ``StoreError``."""
    reuse, tiers = policy.reuse, policy.tiers
    if tiers is None or not isinstance(reuse, Paged):
        return None
    config = store_config(tiers, reuse.block)
    opened = (RAM.name, *(tier.name for tier in config.below))
    held = tuple(tier.name for tier in tiers.holds) if isinstance(tiers, Tiers) else ()
    if opened != held:
        raise StoreError(
            f"policy '{tiers}' holds KV in {_listed(held)}, but kvlab.store.from_policy opens {_listed(opened)}: "
            f"register {type(tiers).__name__} with store_config"
        )
    return Store(config)


def open_answer_files(policy: Policy) -> AnswerFiles | None:
    """Open the files for the tokens of answers beside a policy's blocks; None where these are lost with the process."""
    reuse, tiers = policy.reuse, policy.tiers
    if tiers is None or not isinstance(reuse, Paged):
        return None
    for tier in store_config(tiers, reuse.block).below:
        if isinstance(tier, SsdConfig):
            return AnswerFiles(marker.resolved(tier.directory), min(MAX_ANSWER_FILE_BYTES, tier.budget // ANSWER_SHARE))
    return None


@singledispatch
def store_config(tiers: Module, block: int) -> StoreConfig:
    """Return the store that a module of the ``tiers`` slot describes. Raises ``StoreError`` for an unknown module."""
    raise StoreError(
        f"kvlab.store.from_policy does not know the tiers '{tiers}': register {type(tiers).__name__} with store_config"
    )


@store_config.register(Ram)
def _(tiers: Ram, block: int) -> StoreConfig:
    return StoreConfig(block, parse_bytes(tiers.ram), tiers.replace)


@store_config.register(Tiered)
def _(tiers: Tiered, block: int) -> StoreConfig:
    daily = parse_bytes(tiers.daily) if tiers.daily else None
    below: tuple[TierConfig, ...] = (_ssd(tiers, daily), *_remote(tiers))
    return StoreConfig(block, parse_bytes(tiers.ram), tiers.replace, below, write=tiers.write, admit=tiers.admit)


@store_config.register(Snapshot)
def _(tiers: Snapshot, block: int) -> StoreConfig:
    return StoreConfig(block, parse_bytes(tiers.ram), tiers.replace, (_ssd(tiers, None),), write="snapshot")


def _ssd(tiers: Tiered | Snapshot, daily: int | None) -> SsdConfig:
    folder = Path(tiers.dir).expanduser() if tiers.dir else home() / "store"
    return SsdConfig(folder, parse_bytes(tiers.ssd), tiers.replace, daily)


def _remote(tiers: Tiered) -> tuple[RemoteConfig, ...]:
    if tiers.remote is None:
        return ()
    ttl_s = None if tiers.remote_ttl is None else float(parse_seconds(tiers.remote_ttl))
    budget = None if tiers.remote_size is None else parse_bytes(tiers.remote_size)
    return (RemoteConfig(tiers.remote, ttl_s, budget, tiers.remote_wait / 1000),)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no tier"
