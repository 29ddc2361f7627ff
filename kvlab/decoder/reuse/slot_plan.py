"""``SlotPlan``: which slot a request takes and which saved sequence moves into it, from tokens alone.

Follows llama.cpp's server (b11434): ``get_available_slot`` and ``server_prompt_cache``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvlab.decoder.reuse.kept_sequence import Departed, KeptSequence, reason_of_miss
from kvlab.errors import KvlabError

SAVED_BELOW = 0.5
"""Part of a slot's sequence that must stay: a slot that would lose more is saved, and the host list is searched."""

Copy = Callable[[KeptSequence], KeptSequence]
"""Makes a copy of a sequence whose KV is memory of its own."""


@dataclass(frozen=True)
class SlotStart:
    """What a request starts from.

    Attributes:
        slot: the number of its slot.
        tokens: leading tokens that it does not compute.
        source: the sequence that they are of, which belongs to the request from now on; None where it is none.
        origin: ``slot``, ``host``, or empty.
        saved: sequences that were added to the host list.
        dropped: sequences that have left it, other than the one that moved into the slot.
        miss: why the other tokens are not reused.
    """

    slot: int
    tokens: int
    source: KeptSequence | None
    origin: str
    saved: tuple[KeptSequence, ...]
    dropped: tuple[KeptSequence, ...]
    miss: str


@dataclass
class _Slot:
    number: int
    sequence: KeptSequence | None = None
    used: int = -1
    is_busy: bool = False


@dataclass
class _Changes:
    saved: list[KeptSequence] = field(default_factory=list)
    dropped: list[KeptSequence] = field(default_factory=list)


class HostList:
    """Whole saved sequences, the one that was saved first in front.

    Args:
        limit: bytes of all of them; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[KeptSequence] = []

    def __iter__(self) -> Iterator[KeptSequence]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all saved sequences."""
        return sum(entry.nbytes for entry in self._entries)

    def takes(self, sequence: KeptSequence) -> bool:
        """Return whether the sequence would be saved: it is not too large, and no prefix of a saved one."""
        return sequence.nbytes <= self.limit and not any(_is_prefix(sequence, entry) for entry in self._entries)

    def save(self, sequence: KeptSequence) -> list[KeptSequence]:
        """Add a sequence that is taken; return those that leave: prefixes of it, and the oldest without room."""
        gone = [entry for entry in self._entries if _is_prefix(entry, sequence)]
        self._entries = [entry for entry in self._entries if entry not in gone] + [sequence]
        while self.nbytes > self.limit:
            gone.append(self._entries.pop(0))
        return gone

    def take(
        self, tokens: np.ndarray, tenant: str, slot: KeptSequence | None, least_kept: float
    ) -> KeptSequence | None:
        """Remove and return the sequence that is better than that of the slot; None where there is none.

        Better: more of the sequence is used, and more of the request is found. ``least_kept`` is the least part of it
        that must be used.
        """
        best = None
        common = slot.common(tokens, tenant) if slot is not None else 0
        kept, found = (common / len(slot), common / len(tokens)) if slot is not None else (-1.0, 0.0)
        for entry in self._entries:
            common = entry.common(tokens, tenant)
            mine, all_of = common / len(entry), common / len(tokens)
            if mine >= least_kept and mine > kept and all_of > found:
                best, kept, found = entry, mine, all_of
        if best is not None:
            self._entries.remove(best)
        return best


class SlotPlan:
    """The slots and the host list of one server. Tokens in, decisions out.

    Args:
        n: number of slots.
        share: least part of a prompt that a slot must have, exclusive; None: slots are chosen by use alone.
        unified: idle slots are emptied into the host list when a request starts.
        host: bytes of the host list.
        keep: least part of a saved sequence that a request must share.
        copy: makes the copy that is saved; None saves the sequence itself.
    """

    def __init__(
        self,
        n: int,
        *,
        share: float | None = 0.1,
        unified: bool = True,
        host: int = 1 << 33,
        keep: float = 0.25,
        copy: Copy | None = None,
    ) -> None:
        self._slots = [_Slot(number) for number in range(n)]
        self._share, self._unified, self._keep = share, unified, keep
        self._copy: Copy = copy or (lambda sequence: sequence)
        self.host = HostList(host)
        self._gone = Departed()
        self._clock = 0

    @property
    def slots(self) -> tuple[KeptSequence | None, ...]:
        """The sequence of each slot; None where it is empty or a request has it."""
        return tuple(slot.sequence for slot in self._slots)

    @property
    def busy(self) -> tuple[int, ...]:
        """Numbers of the slots whose request runs."""
        return tuple(slot.number for slot in self._slots if slot.is_busy)

    @property
    def nbytes(self) -> int:
        """Bytes of the sequences in idle slots and in the host list."""
        return self.host.nbytes + sum(slot.sequence.nbytes for slot in self._slots if slot.sequence is not None)

    def known(self) -> list[KeptSequence]:
        """Return all sequences of idle slots and of the host list."""
        return [*(slot.sequence for slot in self._slots if slot.sequence is not None), *self.host]

    def start(self, tokens: Sequence[int] | np.ndarray, tenant: str = "") -> SlotStart:
        """Choose a slot for a request, and what it starts from; the slot is busy until :meth:`end`.

        Raises:
            KvlabError: no slot is idle.
        """
        prompt, changes, known = np.asarray(tokens, np.int32), _Changes(), self.known()
        slot, is_similar = self._choose(prompt, tenant)
        sequence, slot.sequence, slot.is_busy = slot.sequence, None, True
        origin = "slot" if sequence is not None else ""
        loses = sequence is not None and sequence.common(prompt, tenant) / len(sequence) < SAVED_BELOW
        if self.host.limit and (loses or not is_similar):
            if sequence is not None:
                self._save(sequence, changes)
            better = self.host.take(prompt, tenant, sequence, self._keep)
            if better is not None:
                sequence, origin = better, "host"
        self._empty_others(slot, changes)
        common = min(sequence.common(prompt, tenant), len(prompt) - 1) if sequence is not None else 0
        start = sequence.start_within(common) if sequence is not None else 0
        source = sequence if start else None
        miss = reason_of_miss(prompt, tenant, start, sequence, known, self._gone)
        return SlotStart(
            slot.number, start, source, origin if start else "", tuple(changes.saved), tuple(changes.dropped), miss
        )

    def end(self, number: int, sequence: KeptSequence | None) -> None:
        """Leave a slot idle with the sequence that its request computed; None leaves it empty."""
        slot = self._slots[number]
        slot.sequence = sequence if sequence is not None and len(sequence) else None
        slot.is_busy = False
        self._clock += 1
        slot.used = self._clock

    def check_integrity(self) -> None:
        """Raise KvlabError where bytes or slots contradict the rules; for tests."""
        if self.host.nbytes > self.host.limit:
            raise KvlabError(f"the host list holds {self.host.nbytes} bytes of {self.host.limit}")
        if any(slot.is_busy and slot.sequence is not None for slot in self._slots):
            raise KvlabError("a busy slot has a sequence of its own")
        entries = list(self.host)
        if any(_is_prefix(a, b) for a in entries for b in entries if a is not b):
            raise KvlabError("the host list holds a prefix of another sequence")

    def _choose(self, prompt: np.ndarray, tenant: str) -> tuple[_Slot, bool]:
        """Return the slot for a prompt, and whether it was chosen by what it holds."""
        idle = [slot for slot in self._slots if not slot.is_busy]
        if not idle:
            raise KvlabError(f"all {len(self._slots)} slots are busy: end a request first")
        if self._share is not None:
            shares = [(slot.sequence.common(prompt, tenant), slot) for slot in idle if slot.sequence is not None]
            common, slot = max(shares, key=lambda one: one[0], default=(0, idle[0]))
            if common and common / len(prompt) > self._share:
                return slot, True
        return min(idle, key=lambda slot: (slot.used, -slot.number)), False

    def _empty_others(self, chosen: _Slot, changes: _Changes) -> None:
        """Save all other idle slots; with one memory for all, they are empty afterwards."""
        if not self.host.limit:
            return
        for slot in self._slots:
            if slot is not chosen and slot.sequence is not None:
                self._save(slot.sequence, changes)
                if self._unified:
                    slot.sequence = None

    def _save(self, sequence: KeptSequence, changes: _Changes) -> None:
        if not self.host.takes(sequence):
            return
        saved = self._copy(sequence)
        gone = self.host.save(saved)
        changes.saved.append(saved)
        changes.dropped += gone
        for entry in gone:
            self._gone.add(entry)


def _is_prefix(short: KeptSequence, long: KeptSequence) -> bool:
    """Return whether a sequence is a prefix of another one, or equal to it."""
    return len(short) <= len(long) and long.common(short.tokens, short.tenant) == len(short)
