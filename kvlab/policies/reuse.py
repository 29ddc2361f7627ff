"""Reuse modules: how a new request finds earlier KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module


@dataclass(frozen=True)
class NoReuse(Module):
    """Every request starts from nothing."""

    name: ClassVar[str] = "none"
    slot: ClassVar[str] = "reuse"


@dataclass(frozen=True)
class Paged(Module):
    """Blocks of ``block`` tokens under chained hashes: any request that shares a prefix starts from it.

    Follows vLLM's automatic prefix caching (Kwon et al. 2023). Deviation: the match is to the token (the stored tail
    and the common part of a diverging block are reused too), not to the block.

    Layers that cannot be cut at a token (sliding windows, recurrent state) are kept as checkpoints at message
    boundaries and every ``checkpoint`` tokens of prefill, whatever the block size.

    Args:
        block: tokens a block.
        checkpoint: prefill tokens between two checkpoints, for models that need them.
    """

    name: ClassVar[str] = "paged"
    slot: ClassVar[str] = "reuse"
    paper: ClassVar[str] = "PagedAttention, arXiv:2309.06180"
    block: int = 32
    checkpoint: int = 1024

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 4096:
            raise PolicyError(f"paged: block={self.block} is out of range; write 1 to 4096 tokens, such as block=32")
        if self.checkpoint < 1:
            raise PolicyError(f"paged: checkpoint={self.checkpoint} must be 1 token or more")
