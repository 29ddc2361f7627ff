"""What a replacement policy is: who leaves a full tier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import ClassVar

from kvlab import replacement_names

Evictable = Callable[[Hashable], bool]


def anyone(_key: Hashable) -> bool:
    """The predicate of a plain cache: every resident key may leave."""
    return True


class Replacement(ABC):
    """An order of leaving over the resident keys of one tier. It holds no payloads and does no accounting.

    The owner calls ``admit`` when a key enters, ``touch`` when it is used again, ``victim`` to learn who should leave
    next and ``remove`` when a key has left, for whatever reason. ``size`` is in the same unit as ``capacity`` (bytes in
    a tier, 1 a block on plain traces); ``cost`` is the seconds that recomputing the block takes; ``uses`` is how often
    a key was used already, for one that is loaded back after a restart.

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
        """Take in a key that was absent."""

    @abstractmethod
    def touch(self, key: Hashable) -> None:
        """Note one more use of a resident key."""

    @abstractmethod
    def victim(self, evictable: Evictable = anyone) -> Hashable | None:
        """The key to leave next among those that ``evictable`` accepts, or None. Never changes who is resident."""

    @abstractmethod
    def remove(self, key: Hashable, evicted: bool = True) -> None:
        """Forget a resident key. ``evicted`` is False where it left for another reason than room."""

    def freed(self, key: Hashable) -> None:  # noqa: B027 - most policies look at every key anew each time
        """Told when a resident key that ``evictable`` refused, for having descendants, has lost the last of them."""

    @abstractmethod
    def __contains__(self, key: object) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...


def absent(key: Hashable, resident: bool) -> None:
    """Raise ``KeyError`` when a key that should be new is resident already."""
    if resident:
        raise KeyError(f"{key!r} is resident already")
