"""``PromptPlan``: which kept sequence a request starts from, and which one leaves, from tokens alone.

Follows mlx-lm's server (0.32.2): ``LRUPromptCache``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvlab.counts import counted
from kvlab.decoder.reuse.kept_sequence import Departed, KeptSequence, reason_of_miss
from kvlab.errors import KvlabError

KINDS_BY_WORTH = ("assistant", "user", "system")
"""Kinds of sequences, the one that leaves first in front: what a sequence was kept behind."""
MIN_PREFIX_TOKENS = 2
"""Fewest tokens of a sequence that is used as a prefix."""


@dataclass(frozen=True)
class PromptStart:
    """What a request starts from: the first ``tokens`` of a copy of ``source``; ``miss`` says why not from more."""

    tokens: int
    source: KeptSequence | None
    miss: str


class PromptPlan:
    """The sequences of one server, in the order in which they leave. Tokens in, decisions out.

    Args:
        count: most sequences.
        limit: most bytes; None is no limit.
        refresh: whether a lookup moves a sequence to the end of the order.
    """

    def __init__(self, count: int = 10, limit: int | None = None, *, refresh: bool = False) -> None:
        self._count, self._limit, self._refresh = count, limit, refresh
        self._order: dict[str, list[KeptSequence]] = {kind: [] for kind in KINDS_BY_WORTH}
        self._gone = Departed()

    def __len__(self) -> int:
        return sum(len(sequences) for sequences in self._order.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all sequences."""
        return sum(sequence.nbytes for sequence in self.known())

    def known(self) -> list[KeptSequence]:
        """Return all sequences, by kind and then in the order in which they leave."""
        return [sequence for sequences in self._order.values() for sequence in sequences]

    def look_up(self, tokens: Sequence[int] | np.ndarray, tenant: str = "") -> PromptStart:
        """Return what a request starts from. The sequence stays, so that other requests can start from it too."""
        prompt = np.asarray(tokens, np.int32)
        start, source = self._best(prompt, tenant)
        source = source if start else None
        if source is not None and self._refresh:
            mine = self._order[source.kind]
            mine.append(mine.pop(mine.index(source)))
        miss = reason_of_miss(prompt, tenant, start, source, self.known(), self._gone)
        return PromptStart(start, source, miss)

    def insert(self, sequence: KeptSequence) -> list[KeptSequence]:
        """Keep a sequence; return those that leave for want of room, which may be the sequence itself.

        An equal one is replaced. Where all layers can be cut, prefixes of it are too: it stands for them.
        """
        replaced = [one for one in self.known() if _is_equal(one, sequence)]
        prefixes = [one for one in self.known() if _is_prefix(one, sequence)] if _is_cuttable(sequence) else []
        for one in (*replaced, *prefixes):
            self._order[one.kind].remove(one)
        self._order[sequence.kind].append(sequence)
        victims = [self._pop()] if len(self) > self._count else []
        while self._limit is not None and self.nbytes > self._limit:
            victims.append(self._pop())
        for one in victims:
            self._gone.add(one)
        return victims

    def check_integrity(self) -> None:
        """Raise KvlabError where bytes or counts contradict the rules; for tests."""
        if len(self) > self._count:
            raise KvlabError(f"{counted(len(self), 'sequence')} kept, more than {self._count}")
        if self._limit is not None and self.nbytes > self._limit:
            raise KvlabError(f"the sequences hold {self.nbytes} bytes of {self._limit}")
        known = self.known()
        if any(_is_equal(a, b) for i, a in enumerate(known) for b in known[:i]):
            raise KvlabError("a sequence is kept twice")

    def _best(self, prompt: np.ndarray, tenant: str) -> tuple[int, KeptSequence | None]:
        commons = [(one.common(prompt, tenant), one) for one in self.known()]
        for common, one in commons:
            if common == len(one) == len(prompt) and _is_cuttable(one):
                return len(prompt) - 1, one  # the last token is computed again, for its logits
        prefixes = [one for common, one in commons if MIN_PREFIX_TOKENS <= common == len(one) < len(prompt)]
        shorter = max(prefixes, key=len, default=None)
        deepest = max((common for common, _ in commons), default=0)
        if deepest > (len(shorter) if shorter is not None else 0):
            reaching = [one for common, one in commons if common == deepest and len(one) > deepest]
            longer = min(reversed(reaching), key=len, default=None)
            if longer is not None and _is_cuttable(longer):
                return min(len(prompt) - 1, deepest), longer
        return (len(shorter), shorter) if shorter is not None else (0, None)

    def _pop(self) -> KeptSequence:
        """Remove and return the sequence that leaves next: the oldest of the first kind that is not outnumbered."""
        for kind, other in zip(KINDS_BY_WORTH, KINDS_BY_WORTH[1:], strict=False):
            if self._order[kind] and len(self._order[kind]) >= len(self._order[other]):
                return self._order[kind].pop(0)
        return self._order[KINDS_BY_WORTH[-1]].pop(0)


def _is_cuttable(sequence: KeptSequence) -> bool:
    return sequence.cut_from == 0


def _is_equal(one: KeptSequence, other: KeptSequence) -> bool:
    return one.tenant == other.tenant and np.array_equal(one.tokens, other.tokens)


def _is_prefix(short: KeptSequence, long: KeptSequence) -> bool:
    return len(short) < len(long) and long.common(short.tokens, short.tenant) == len(short)
