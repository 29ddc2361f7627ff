"""The base of replacement policies, which choose what leaves a full tier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import ClassVar

from kvlab import replacement_names

Evictable = Callable[[Hashable], bool]


def any_key(_key: Hashable) -> bool:
    """Accept every key, as a plain cache does."""
    return True


class Replacement(ABC):
    """Orders the resident keys of one tier by when they should leave; holds no payloads.

    The owner calls ``link`` and then ``admit`` when a key enters, ``touch`` when it is used again, ``victim`` to learn
    which key should leave next and ``remove`` when a key has left, for any reason. Keys without chains are not linked.
    ``size`` is in the same unit as ``capacity`` (bytes in a tier, 1 a block on plain traces); ``cost`` is what
    recomputing the block takes, in a unit that all keys share; ``uses`` is how often a key was used already, for one
    that is loaded back after a restart.

    ``admit`` of a resident key and ``touch`` or ``remove`` of an absent one raise ``KeyError``. None is thread-safe.
    """

    name: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__dict__.get("name"):
            replacement_names.declare(cls.name)

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @abstractmethod
    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        """Add a key that was absent."""

    @abstractmethod
    def touch(self, key: Hashable) -> None:
        """Note one more use of a resident key."""

    @abstractmethod
    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        """Return the key to leave next among those that ``evictable`` accepts, or None; it stays resident."""

    @abstractmethod
    def remove(self, key: Hashable, evicted: bool = True) -> None:
        """Forget a resident key. ``evicted`` is False where it left for another reason than a full tier."""

    def expect(self, key: Hashable, size: int = 1) -> None:  # noqa: B027 - few policies look ahead
        """Note that an absent key is about to be admitted, before space is made for it."""

    def link(self, key: Hashable, parent: Hashable, start: int) -> None:  # noqa: B027 - few policies look at chains
        """Note what an absent key that is admitted next stands behind: its parent, and the tokens before it."""

    def expired(self, evictable: Evictable = any_key) -> Hashable | None:
        """Return a key whose time is over, among those that ``evictable`` accepts, or None; it stays resident."""
        return None

    def freed(self, key: Hashable) -> None:  # noqa: B027 - most policies look at every key anew each time
        """Note that a resident key that ``evictable`` refused, because it had descendants, has none any more."""

    @abstractmethod
    def __contains__(self, key: object) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...


def require_absent(key: Hashable, resident: bool) -> None:
    """Raise ``KeyError`` when a key that should be new is resident already."""
    if resident:
        raise KeyError(f"{key!r} is resident already")
