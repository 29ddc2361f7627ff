"""``Local``: compress each block of a sequence alone, so that other prompts can begin with compressed blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.keydiff import KeyDiff
from kvlab.policies.scorers.pyramidkv import PyramidKV
from kvlab.policies.scorers.saved_scores import saved_scores_of
from kvlab.policies.scorers.wrapping import WrappingScorer

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

MAX_BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class Local(WrappingScorer):
    """Each block of ``block`` tokens keeps its best rows, chosen by another scorer from this block alone.

    Other methods evict at the end of the prompt, so that what stays depends on all of it and no other prompt can begin
    with it. Here a block is compressed as soon as it is complete, and later tokens see only the rows that stayed. The
    compressed block is therefore a function of the tokens up to its end: it is stored, restored and shared under the
    same keys as a block of complete rows, at ``budget`` times the bytes, live and at rest. Live sequences whose prompts
    begin with the same blocks hold them once.

    Scores see the rows, and the queries, of one block; the newest rows that a scorer protects are those of the block.
    Tokens behind the last complete block keep all their rows. Only blocks of prompts are stored: those of an answer
    were computed token by token, which rounds otherwise.

    Args:
        scorer: the scorer whose scores are used: one that needs no rows but those of a block.
        block: tokens that are compressed together, and the tokens of a stored block.
        sinks: first tokens of the sequence that always stay.

    Raises:
        PolicyError: a scorer that cannot work by blocks, or no room for the rows that it protects.
    """

    name: ClassVar[str] = "local"
    scorer: Scorer = KeyDiff()
    block: int = 128
    sinks: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.block <= MAX_BLOCK_TOKENS:
            raise PolicyError(f"local: block={self.block} is out of range; write 2 to {MAX_BLOCK_TOKENS} tokens")
        if self.sinks < 0:
            raise PolicyError(f"local: sinks={self.sinks} is negative; write sinks=0 or more")
        if problem := _why_not_local(self.scorer):
            raise PolicyError(f"local: '{self.scorer.name}' {problem}: write another scorer, such as local(keydiff)")
        super().__post_init__()
        if self.interval != Scorer.interval:
            raise PolicyError(
                f"local: rows leave once a block of {self.block} tokens is complete, so that interval={self.interval} "
                "has no meaning: leave it out"
            )
        fixed = max(self.sinks, self._inner.latest_rows)
        if self.block_rows < min(self.block, max(1, fixed)):
            raise PolicyError(
                f"local: {self.block_rows} rows of {self.block} have no room for the {fixed} that always stay: write a "
                "larger budget or block"
            )

    @property
    def block_rows(self) -> int:
        """Rows that a head keeps of each complete block."""
        return min(self.block, super().rows(self.block, 0, 1))

    @property
    def stored_block(self) -> int:
        return self.block

    @property
    def storage_key(self) -> str:
        """The whole spec: later KV is computed from compressed blocks."""
        return self.full_spec()

    @property
    def reads_all_queries(self) -> bool:  # type: ignore[override]
        return False

    @cached_property
    def window(self) -> int:  # type: ignore[override]
        return self.block if self.scorer.reads_all_queries else min(self.scorer.window, self.block)

    def check(self, policy: Policy) -> None:
        super().check(policy)
        block = getattr(policy.reuse, "block", self.block)
        if policy.reuse.name == "paged" and block != self.block:
            raise PolicyError(
                f"'{self}' compresses blocks of {self.block} tokens and '{policy.reuse}' stores blocks of {block}: "
                f"write paged:block={self.block}, or leave paged out beside tiers"
            )
        if policy.reuse.name not in ("none", "paged"):
            raise PolicyError(f"'{self}' stores blocks, which '{policy.reuse}' does not: use it with paged or tiers")
        if getattr(policy.tiers, "restore", "always") != "always":
            raise PolicyError(f"'{self}' reads compressed blocks, which restore=auto does not time: leave restore out")

    def score(self, context: ScoreContext) -> mx.array:
        scores = super().score(context)
        is_sink = (context.positions >= 0) & (context.positions < self.sinks)
        return mx.where(is_sink, mx.inf, scores)


def _why_not_local(scorer: Scorer) -> str:
    """Return what keeps a scorer from working on one block alone; empty where nothing does."""
    if scorer.accumulates:
        return "adds up over all queries of a prompt"
    if saved_scores_of(scorer) is not None:
        return "has scores of one prompt only"
    if type(scorer).targets is not Scorer.targets:
        return "keeps different numbers of rows in different heads"
    if isinstance(scorer, PyramidKV):
        return "keeps different numbers of rows in different layers"
    return ""
