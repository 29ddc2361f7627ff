"""What a reuse is: how the decoder finds earlier KV for a request, and keeps what the request computed."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from kvlab.decoder.request import Request
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, NoReuse, Policy
from kvlab.store import Namespace, Store

Heard = Callable[[Request, int, int, float], None]
"""Hears of a request's KV that was stored: blocks, bytes, and the seconds that took."""


class PrefixCache(ABC):
    """Restores live caches for new requests, for one model and policy. Decoder thread only.

    A concrete subclass sets ``module``, the policy module that asks for it, and is from then on known to the decoder.

    Args:
        store: where the policy's tiers keep KV at rest; None where it has none.
    """

    module: ClassVar[type[Module]]
    wants_checkpoints: bool = False
    """Whether prompts are cut where :meth:`keep_checkpoint` is called, since some layers' state cannot be cut."""

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        self.loaded, self.policy, self.store = loaded, policy, store
        self.on_stored: Heard = lambda *_: None

    def namespace(self, tenant: str = "") -> Namespace:
        """Return the namespace of this model's and this policy's blocks in the store, for one tenant.

        Raises PolicyError where this reuse keeps no blocks at rest.
        """
        raise nothing_at_rest(self.policy)

    @abstractmethod
    def limit(self, request: Request) -> int:
        """Say how many tokens of the request's context may be reused; at least one is left to compute."""

    @abstractmethod
    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        """Fill ``caches`` with the longest known prefix of the context, note the match on the request.

        ``live`` tokens are there already, shared with another sequence. Returns the bytes restored.
        """

    @abstractmethod
    def segments(self, request: Request) -> list[list[int]]:
        """Give the tokens still to compute, cut where :meth:`keep_checkpoint` is wanted."""

    @abstractmethod
    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        """Keep what the request has computed of ``tokens``, generated ones included; maybe a little later."""

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:  # noqa: B027
        """Keep everything at exactly ``tokens``, in the middle of a prompt."""

    def keep_prompt(self, request: Request, caches: Sequence[Any]) -> None:  # noqa: B027 - may be left
        """Keep the complete prompt rows that a scorer set aside before it evicted."""

    def after_kept(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once all that was given to be kept so far can be found by other requests."""
        callback()

    def step(self) -> None:  # noqa: B027 - may be left
        """A decode step is through."""

    def settle(self) -> None:  # noqa: B027 - may be left
        """Wait until all that was given to be kept is."""

    def close(self) -> None:
        """Keep what is left, and end."""
        self.settle()

    def set_busy(self, is_busy: bool) -> None:  # noqa: B027 - may be left
        """Say whether sequences are computed now: work in the background then takes little of the processor."""


def make_prefix_cache(loaded: LoadedModel, policy: Policy, store: Store | None) -> PrefixCache | None:
    """Make what carries out the policy's reuse; None for ``none``. Raises PolicyError where nothing does."""
    reuse = policy.reuse
    if isinstance(reuse, NoReuse):
        return None
    _read_folder()
    pending, known = list(PrefixCache.__subclasses__()), {}
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if "module" in cls.__dict__:
            known[cls.module] = cls
    if type(reuse) not in known:
        names = ", ".join(sorted(["none", *(cls.name for cls in known)]))
        raise PolicyError(
            f"'{reuse.name}' is a reuse that the decoder does not know: define a subclass of "
            f"kvlab.decoder.reuse.PrefixCache with module = {type(reuse).__name__}, or write one of {names}"
        )
    return known[type(reuse)](loaded, policy, store)


def nothing_at_rest(policy: Policy) -> PolicyError:
    """Return the error for what only a policy with KV at rest can do."""
    return PolicyError(f"policy '{policy}' keeps nothing at rest; use one with paged or tiered")


@functools.cache
def _read_folder() -> None:
    """Import all files of this folder: a reuse is known once its class is defined."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{file.name}")
