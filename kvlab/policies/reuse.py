"""Reuse modules: how a new request finds earlier KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

MATCH_RULES = ("token", "block", "tail")


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

    The other options rebuild what other servers do.

    Args:
        block: tokens a block.
        checkpoint: prefill tokens between two checkpoints, for models that need them.
        match: ``token`` (to the token), ``block`` (full blocks only, which alone are stored; checkpoints are made every
            ``checkpoint`` tokens only), or ``tail`` (full blocks, and a stored tail where all of it is found).
        reply: whether the tokens of answers are stored too.
        opening: whether the tokens with which the chat template opens an answer are stored; without them, the token
            before is left out too.
        live: whether sequences that run, or have ended and are retained, share their live KV with new requests.
        hot: keep the live KV of the sequence that ended last, if it ran alone; the next request takes it where no
            longer prefix is stored, and else frees it. Needs ``live=false``.
    """

    name: ClassVar[str] = "paged"
    slot: ClassVar[str] = "reuse"
    paper: ClassVar[str] = "PagedAttention, arXiv:2309.06180"
    block: int = 32
    checkpoint: int = 1024
    match: str = "token"
    reply: bool = True
    opening: bool = True
    live: bool = True
    hot: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 4096:
            raise PolicyError(f"paged: block={self.block} is out of range; write 1 to 4096 tokens, such as block=32")
        if self.checkpoint < 1:
            raise PolicyError(f"paged: checkpoint={self.checkpoint} must be 1 token or more")
        if self.match not in MATCH_RULES:
            raise PolicyError(f"paged: match={self.match} is unknown; write one of {', '.join(MATCH_RULES)}")
        if self.match == "block" and self.checkpoint % self.block:
            raise PolicyError(
                f"paged: checkpoint={self.checkpoint} is no multiple of block={self.block}, so that match=block would "
                f"find no checkpoint: write checkpoint={-(-self.checkpoint // self.block) * self.block}"
            )
        if self.hot and self.live:
            raise PolicyError("paged: hot=true keeps one ended sequence apart: write live=false,hot=true")

    def check(self, policy: Policy) -> None:
        super().check(policy)
        if self.hot and not policy.retention.is_lossless:
            raise PolicyError(f"paged: hot=true needs all rows, of which '{policy.retention}' drops some: use full")
