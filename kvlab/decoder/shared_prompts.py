"""``SharedPrompts``: KV of prompts that is computed once, under ``full``, for every policy that begins with it."""

from __future__ import annotations

import contextlib

from kvlab.models import LoadedModel
from kvlab.policies import Paged, Policy, Ram
from kvlab.store import Store
from kvlab.store.from_policy import store_config

PromptStore = Store
"""What holds the prompts; its users only hand it to a decoder."""


class SharedPrompts:
    """Prompts in RAM, for policies that keep nothing at rest themselves. One model at a time.

    A scorer evicts behind the prompt, from the rows that ``full`` computed; the tokens whose queries it reads are
    computed anew. So its answers are those of a prompt computed for it alone, in 16 bits as near as other chunks of
    prefill bring them. Windows and codecs change the KV of a prompt while it is computed, and are given none.

    Args:
        size: bytes of RAM, such as ``"6GB"``. Raises PolicyError where it cannot be read.
    """

    def __init__(self, size: str) -> None:
        self._reuse, self._tiers = Paged(live=False), Ram(size)  # each sequence holds its own rows, as without
        self._store: Store | None = None
        self._fingerprint = ""

    def given(self, policy: Policy, model: LoadedModel) -> tuple[Policy, PromptStore | None]:
        """Return the policy as one that finds prompts, with their store; where it can use none, itself and None."""
        if policy.tiers is not None or policy.reuse.name != "none" or policy.storage_key:
            return policy, None
        if self._store is None or self._fingerprint != model.fingerprint:
            self.close()
            self._store, self._fingerprint = Store(store_config(self._tiers, self._reuse.block)), model.fingerprint
        return policy | self._reuse | self._tiers, self._store

    def close(self) -> None:
        """Free the prompts."""
        if self._store is not None:
            self._store.close()
        self._store = None


def opened(size: str | None) -> contextlib.AbstractContextManager[SharedPrompts | None]:
    """Return a context manager that gives SharedPrompts of this size and frees them at its end; None gives None."""
    return contextlib.nullcontext() if size is None else contextlib.closing(SharedPrompts(size))
