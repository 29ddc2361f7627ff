"""Reuse modules that keep whole sequences: slots with a list of saved ones, and a trie of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.sizes import format_bytes, parse_bytes
from kvlab.policies.slots import Module

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

PROMPT_ORDERS = ("fifo", "lru")
MAX_SLOTS = 1024


@dataclass(frozen=True)
class WholeSequences(Module):
    """Base of reuse modules that keep whole sequences in memory of their own, without blocks and without tiers."""

    slot: ClassVar[str] = "reuse"
    uses_tiers: ClassVar[bool] = False

    def check(self, policy: Policy) -> None:
        super().check(policy)
        if not policy.retention.is_lossless:
            raise PolicyError(
                f"'{policy.retention}' drops rows of the sequences that '{self.name}' keeps whole: use it with paged, "
                f"or full with {self.name}"
            )
        if policy.tiers is not None:
            raise PolicyError(
                f"'{self.name}' keeps its sequences in memory of its own, so that '{policy.tiers}' would hold nothing: "
                f"write {self.name} alone, or paged|{policy.tiers.name}"
            )


@dataclass(frozen=True)
class Slots(WholeSequences):
    """``n`` slots with one sequence each, and a list of whole saved slots in host memory, as in llama.cpp's server.

    A request takes the idle slot that shares the largest part of its prompt, if that is more than ``share``; else the
    one that was used least recently. Of its sequence, the common prefix stays. A slot that would lose much is saved to
    the host list first, and a saved sequence that fits better moves into the slot. Nothing is shared between slots.

    Args:
        n: slots, and with them the most requests that run side by side.
        share: least part of the new prompt that a slot must have, exclusive; 0.0 takes any common token, none chooses
            by the order of use alone.
        unified: slots share one memory: all idle slots but the chosen one move to the host list when a request
            starts. Otherwise they are saved there too, and keep their KV.
        host: byte budget of the host list, such as 8GiB; 0 is no list.
        keep: least part of a saved sequence that a request must share to get it.
        checkpoints: most checkpoints of a sequence, for models with layers whose state cannot be cut at a token.
        spacing: fewest tokens between two checkpoints that are made at messages.
        ubatch: tokens of a physical batch: one checkpoint is made 4 tokens before the end of a prompt, and one so many
            tokens earlier.
    """

    name: ClassVar[str] = "slots"
    paper: ClassVar[str] = "llama.cpp b11434, tools/server"
    n: int = 4
    share: float | None = 0.1
    unified: bool = True
    host: str = "8GiB"
    keep: float = 0.25
    checkpoints: int = 32
    spacing: int = 8192
    ubatch: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_SLOTS:
            raise PolicyError(f"slots: n={self.n} is out of range; write 1 to {MAX_SLOTS} slots, such as n=4")
        if self.share is not None and not 0 <= self.share < 1:
            raise PolicyError(f"slots: share={self.share} is out of range; write a part below 1, such as share=0.1")
        if not 0 <= self.keep <= 1:
            raise PolicyError(f"slots: keep={self.keep} is out of range; write a part from 0 to 1, such as keep=0.25")
        for field, least in (("checkpoints", 0), ("spacing", 1), ("ubatch", 1)):
            if getattr(self, field) < least:
                raise PolicyError(f"slots: {field}={getattr(self, field)} must be {least} or more")
        object.__setattr__(self, "host", format_bytes(parse_bytes(self.host)))


@dataclass(frozen=True)
class WholePrompts(WholeSequences):
    """The last ``count`` whole sequences in a trie; a request starts from a copy of the one that fits best.

    Follows mlx-lm's server. The sequence that is equal; else the shortest one that goes on behind the common part, cut
    to it, where all layers can be cut; else the longest one that is a prefix. A sequence that is kept replaces those
    that are prefixes of it, where all layers can be cut.

    Deviation: a request that is equal to a sequence computes its last token again; mlx-lm's server fails there.

    Args:
        count: sequences.
        bytes: byte budget of all of them; none is no limit.
        order: which one leaves first: ``fifo`` (the one that was stored first) or ``lru`` (used least recently).
    """

    name: ClassVar[str] = "prompts"
    paper: ClassVar[str] = "mlx-lm 0.32.2, server.py"
    count: int = 10
    bytes: str | None = None
    order: str = "fifo"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PolicyError(f"prompts: count={self.count} must be 1 sequence or more")
        if self.order not in PROMPT_ORDERS:
            raise PolicyError(f"prompts: order={self.order} is unknown; write one of {', '.join(PROMPT_ORDERS)}")
        if self.bytes is not None:
            object.__setattr__(self, "bytes", format_bytes(parse_bytes(self.bytes)))
