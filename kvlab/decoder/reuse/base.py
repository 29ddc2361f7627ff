"""``PrefixCache``: how the decoder finds earlier KV for a request, and keeps the KV that a request computes."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.decoder.request import Request
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Module, NoReuse, Policy
from kvlab.store import Namespace, Store

OnStored = Callable[[Request, int, int, float], None]
"""Called when KV of a request was stored, with its blocks, its bytes and the seconds that took."""

OnDropped = Callable[[int, int], None]
"""Called when KV left memory of a reuse's own for good, with its sequences and its bytes."""


OnChain = Callable[[Request, int, bool, np.ndarray], None]
"""Called with the tokens of a block, whether blocks are kept, and the ids of a sequence's full ones, int64 ``[n]``."""


class PrefixCache(ABC):
    """Fills live caches of new requests with earlier KV, for one model and policy. Decoder thread only.

    A concrete subclass sets ``module``, the policy module that it carries out, and is from then on known to the
    decoder.

    Args:
        store: KV at rest of the policy's tiers; None where it has none.
    """

    module: ClassVar[type[Module]]
    retention: ClassVar[type[Module]] = Module
    codec: ClassVar[type[Module]] = Module
    """Retentions and codecs that this class is for; a subclass may carry out the same reuse for some of them."""

    wants_checkpoints: bool = False
    """Whether prompts are cut where :meth:`keep_checkpoint` is called, since some layers' state cannot be cut."""

    keeps_parts: bool = False
    """Whether KV of the first part of a prompt, up to any token, can be kept while the rest is computed."""

    joins_running: bool = True
    """Whether a request may start from KV of another one that still runs, or wait for it."""

    prefixes: PrefixTree | None = None
    """Prefixes that this reuse has live requests share: others wait until they are computed, and not until at rest."""

    piece_tokens: int | None = None
    """Most tokens between two cuts of a prompt; None where cuts say nothing of that."""

    places: int | None = None
    """Most requests that may run side by side; None is no limit of this reuse."""

    agree: Callable[[int], int] = staticmethod(lambda tokens: tokens)
    """Returns how many restored tokens all ranks of a split model have, of which this one has so many."""

    nbytes: int = 0
    """Bytes of KV at rest in memory of its own, beside the store. Any thread may read it."""

    def __init__(self, loaded: LoadedModel, policy: Policy, store: Store | None) -> None:
        self.loaded, self.policy, self.store = loaded, policy, store
        self.on_stored: OnStored = lambda *_: None
        self.on_dropped: OnDropped = lambda *_: None
        self.on_chain: OnChain | None = None

    def namespace(self, tenant: str = "") -> Namespace:
        """Return the namespace of this model's and this policy's blocks in the store, for one tenant.

        Raises PolicyError where this reuse keeps no blocks at rest.
        """
        raise nothing_at_rest(self.policy)

    @abstractmethod
    def limit(self, request: Request) -> int:
        """Return how many tokens of the request's context may be reused; at least one is left to compute."""

    def stored(self, request: Request) -> int:
        """Return at least how many leading tokens of the request's context are at rest, in whole blocks."""
        return 0

    @abstractmethod
    def restore(self, request: Request, caches: Sequence[Any], live: int = 0) -> int:
        """Fill ``caches`` with the longest known prefix of the context, and note the match on the request.

        The first ``live`` tokens are in the caches already, shared with another sequence. Returns the restored bytes.
        """

    @abstractmethod
    def segments(self, request: Request) -> list[list[int]]:
        """Return the tokens that are still to compute, cut where :meth:`keep_checkpoint` is to be called."""

    @abstractmethod
    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        """Keep the KV of ``tokens``, generated ones included; it may be stored a few steps later."""

    def keep_cancelled(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        """Keep the KV of a request that was cancelled: as :meth:`keep`, unless this reuse keeps less of it."""
        self.keep(request, caches, tokens)

    def keep_checkpoint(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:  # noqa: B027
        """Keep rows and the state of all other layers at exactly ``tokens``, within a prompt."""

    def keep_prompt(self, request: Request, caches: Sequence[Any]) -> None:  # noqa: B027 - may be left
        """Keep the complete rows of the prompt, which a scorer copied before it evicted."""

    def after_kept(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once other requests can find all KV that was given to be kept so far."""
        callback()

    def step(self) -> None:  # noqa: B027 - may be left
        """Continue work that waits for decode steps; called after each."""

    def settle(self) -> None:  # noqa: B027 - may be left
        """Wait until all KV that was given to be kept is stored."""

    def close(self) -> None:
        """Store all KV that was given to be kept, and end."""
        self.settle()

    def set_busy(self, is_busy: bool) -> None:  # noqa: B027 - may be left
        """Say whether sequences are computed now; then background work uses little of the processor."""


def make_prefix_cache(loaded: LoadedModel, policy: Policy, store: Store | None) -> PrefixCache | None:
    """Make the prefix cache of the policy's reuse; None for ``none``. Raises PolicyError for an unknown module."""
    if isinstance(policy.reuse, NoReuse):
        return None
    return prefix_cache_of(policy)(loaded, policy, store)


def prefix_cache_of(policy: Policy) -> type[PrefixCache]:
    """Return the class that carries out a policy's reuse other than ``none``; PolicyError where there is none."""
    reuse = policy.reuse
    _read_folder()
    pending, known = list(PrefixCache.__subclasses__()), {}
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        is_special = "retention" in cls.__dict__ or "codec" in cls.__dict__
        fits = isinstance(policy.retention, cls.retention) and isinstance(policy.codec, cls.codec)
        if "module" in cls.__dict__ or (is_special and fits):
            known[cls.module] = cls
    if type(reuse) not in known:
        names = ", ".join(sorted(["none", *(cls.name for cls in known)]))
        raise PolicyError(
            f"'{reuse.name}' is a reuse that the decoder does not know: define a subclass of "
            f"kvlab.decoder.reuse.PrefixCache with module = {type(reuse).__name__}, or write one of {names}"
        )
    return known[type(reuse)]


def nothing_at_rest(policy: Policy) -> PolicyError:
    """Return the error for what only a policy with KV at rest can do."""
    return PolicyError(f"policy '{policy}' keeps nothing at rest; use one with paged or tiered")


@functools.cache
def _read_folder() -> None:
    """Import all files of this folder: a reuse is known once its class is defined."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{file.name}")
