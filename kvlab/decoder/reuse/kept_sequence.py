"""``KeptSequence``: a whole sequence that was kept, and where a request can start from it. No arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvlab.decoder.prefix_tree import common_prefix

REMEMBERED_SEQUENCES = 64
"""Sequences that are gone and whose tokens are remembered, to say why a request missed."""


@dataclass(eq=False)
class KeptSequence:
    """A sequence of ``tokens`` (int32) of one tenant, with KV that belongs to it.

    Attributes:
        nbytes: bytes of its KV, checkpoints included.
        cut_from: the fewest tokens at which all layers can be cut; 0 where rows belong to tokens one by one. Below
            that, a request can start at a checkpoint only.
        checkpoints: token counts with a checkpoint, ascending.
        kind: what its last token ends, for a cache that treats system prompts, user messages and answers apart.
        kv: the KV itself, which no plan looks at.
    """

    tokens: np.ndarray
    tenant: str = ""
    nbytes: int = 0
    cut_from: int = 0
    checkpoints: tuple[int, ...] = ()
    kind: str = "assistant"
    kv: Any = None

    def __post_init__(self) -> None:
        self.tokens = np.asarray(self.tokens, np.int32)

    def __len__(self) -> int:
        return len(self.tokens)

    def common(self, tokens: np.ndarray, tenant: str) -> int:
        """Return the length of the common prefix with a request; 0 for another tenant's."""
        return common_prefix(self.tokens, tokens) if tenant == self.tenant else 0

    def start_within(self, tokens: int) -> int:
        """Return the most tokens, at most ``tokens``, at which a request can start."""
        if self.cut_from <= tokens:
            return min(tokens, len(self))
        return max((at for at in self.checkpoints if at <= tokens), default=0)


class Departed:
    """Remembers the tokens of sequences that have left, the latest few."""

    def __init__(self) -> None:
        self._gone: deque[tuple[str, np.ndarray]] = deque(maxlen=REMEMBERED_SEQUENCES)

    def add(self, sequence: KeptSequence) -> None:
        """Remember a sequence that is gone."""
        self._gone.append((sequence.tenant, sequence.tokens))

    def common(self, tokens: np.ndarray, tenant: str) -> int:
        """Return the longest common prefix with a sequence that is gone."""
        return max((common_prefix(gone, tokens) for owner, gone in self._gone if owner == tenant), default=0)


def reason_of_miss(
    tokens: np.ndarray,
    tenant: str,
    cached: int,
    source: KeptSequence | None,
    kept: Iterable[KeptSequence],
    gone: Departed,
) -> str:
    """Return why a request starts with no more than ``cached`` tokens; empty where only its last one is left.

    ``source`` is what it starts from, and ``kept`` all sequences of before it started.
    """
    if cached >= len(tokens) - 1:
        return ""
    if source is not None and min(source.common(tokens, tenant), len(tokens) - 1) > cached:
        return "no_checkpoint"
    if gone.common(tokens, tenant) > cached:
        return "evicted"
    known = max(_known(tokens, tenant, kept), key=lambda one: one[0], default=(0, 0))
    if known[0] == 0 or (known[0] <= cached and known[0] == known[1]):
        return "never_seen"
    return f"diverged_at={known[0]}"


def _known(tokens: np.ndarray, tenant: str, kept: Iterable[KeptSequence]) -> Iterator[tuple[int, int]]:
    """Yield the length of the common prefix and the whole length of each sequence."""
    for sequence in kept:
        yield sequence.common(tokens, tenant), len(sequence)
