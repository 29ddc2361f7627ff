"""``BlockTrace``: a frozen trace of requests over NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from kvlab.counts import counted
from kvlab.replay.chains import ROOT, numbered_chains, parents_of_places
from kvlab.replay.errors import TraceError

NOTES = ("answer_blocks", "tail_blocks", "tail_tokens")
"""Columns that only records of a store's own requests fill."""


@dataclass(frozen=True, eq=False)
class BlockTrace:
    """Holds requests in time order, each with the chain of blocks that its prompt consists of.

    The parent of block i is block i - 1 of the same request, so that the blocks of a trace are the nodes of trees.
    Made with :func:`block_trace`, which numbers the blocks. Impossible arrays raise ``TraceError``.

    Attributes:
        name: what results call it.
        block_tokens: tokens of a full block.
        times: arrival in seconds, float64 ``[requests]``, never falling.
        input_tokens: tokens of the prompts, int64 ``[requests]``; those behind the last block are in no block.
        output_tokens: tokens of the answers, int64 ``[requests]``.
        sessions: the conversation of each request, int32 ``[requests]``.
        blocks: block numbers from 0 on, int32 ``[total]``, the chains behind one another.
        offsets: where each chain starts, int64 ``[requests + 1]``.
        partial: whether the last block of a prompt is not full, bool ``[requests]``.
        answer_blocks: blocks at the end of each chain that the answer fills, int64 ``[requests]``: they are stored at
            the request's end, and cannot be hit by it. Most traces know of none.
        tail_blocks, tail_tokens: a request whose stored prefix has exactly so many blocks finds so many tokens more, in
            a block that goes on otherwise, int64 ``[requests]``. Only kvlab's own records know of such.
    """

    name: str
    block_tokens: int
    times: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    sessions: np.ndarray
    blocks: np.ndarray
    offsets: np.ndarray
    partial: np.ndarray
    answer_blocks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tail_blocks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tail_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        n = len(self.times)
        for name in NOTES:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(n, np.int64))
        columns = (self.times, self.input_tokens, self.output_tokens, self.sessions, self.partial, self.answer_blocks,
                   self.tail_blocks, self.tail_tokens)  # fmt: skip
        if any(len(column) != n for column in columns) or len(self.offsets) != n + 1:
            raise TraceError("the columns of a trace differ in length; give one value a request")
        if n and (np.diff(self.times) < 0).any():
            raise TraceError("the requests of a trace are not in time order; sort them by their times")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.blocks) or (np.diff(self.offsets) < 0).any():
            raise TraceError("offsets must rise from 0 to the number of blocks")

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.times)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Blocks of each request, int64 ``[requests]``."""
        return np.diff(self.offsets)

    @cached_property
    def unique(self) -> int:
        """The number of different blocks: the footprint in blocks."""
        return int(self.blocks.max(initial=-1)) + 1

    @cached_property
    def parents(self) -> np.ndarray:
        """The parent of each block, int32 ``[unique]``; -1 for first blocks."""
        parents = np.full(self.unique, ROOT, np.int32)
        parents[self.blocks] = parents_of_places(self.blocks, self.offsets)
        return parents

    @cached_property
    def depths(self) -> np.ndarray:
        """The place of each block in its chain, int32 ``[unique]``, 0 for first blocks."""
        depths = np.zeros(self.unique, np.int32)
        depths[self.blocks] = np.arange(len(self.blocks)) - np.repeat(self.offsets[:-1], self.lengths)
        return depths

    @cached_property
    def sizes(self) -> np.ndarray:
        """The tokens of each block, int64 ``[unique]``: those of a full one, or of the longest prompt it ends."""
        sizes = np.zeros(self.unique, np.int64)
        np.maximum.at(sizes, self.blocks, self.place_tokens)
        return sizes

    @cached_property
    def place_tokens(self) -> np.ndarray:
        """The tokens that each place of each chain holds, int64 ``[total]``."""
        tokens = np.full(len(self.blocks), self.block_tokens, np.int64)
        asked = self.asked_blocks
        ends = self.partial & (asked > 0)
        rest = self.input_tokens[ends] - (asked[ends] - 1) * self.block_tokens
        tokens[self.offsets[:-1][ends] + asked[ends] - 1] = rest
        return tokens

    @cached_property
    def asked_blocks(self) -> np.ndarray:
        """Blocks of each request's prompt, int64 ``[requests]``."""
        return self.lengths - self.answer_blocks

    @cached_property
    def known_tokens(self) -> int:
        """The tokens that a tier without limit would hit: in a tree, all blocks but those used for the first time."""
        first = np.full(self.unique, len(self.blocks), np.int64)
        first[self.blocks[::-1]] = np.arange(len(self.blocks) - 1, -1, -1)
        new = np.add.reduceat(_marked(len(self.blocks), first), self.offsets[:-1][self.lengths > 0])
        prefix = np.zeros(len(self), np.int64)
        prefix[self.lengths > 0] = self.lengths[self.lengths > 0] - new
        return int(self.hit_tokens(prefix).sum())

    @cached_property
    def is_plain(self) -> bool:
        """Whether no block has a parent, as in traces of other caches: a request is one block."""
        return bool((self.lengths <= 1).all())

    def chain(self, request: int) -> np.ndarray:
        """Return the blocks of one request, a view."""
        return self.blocks[self.offsets[request] : self.offsets[request + 1]]

    def hit_tokens(self, hit_blocks: np.ndarray) -> np.ndarray:
        """Return the tokens of prefixes of so many blocks, int64 ``[requests]``."""
        tails = np.where(hit_blocks == self.tail_blocks, self.tail_tokens, 0)
        return np.minimum(hit_blocks * self.block_tokens + tails, self.input_tokens)

    def plain(self) -> BlockTrace:
        """Return every block as a request of its own, without parents: how traces of other caches are counted."""
        lengths, n = self.lengths, len(self.blocks)
        tokens = self.place_tokens
        none: dict[str, Any] = {name: np.zeros(n, np.int64) for name in NOTES}
        return replace(
            self,
            times=np.repeat(self.times, lengths),
            input_tokens=tokens,
            output_tokens=np.zeros(n, np.int64),
            sessions=np.repeat(self.sessions, lengths),
            offsets=np.arange(n + 1, dtype=np.int64),
            partial=tokens < self.block_tokens,
            **none,
        )

    def full_blocks(self) -> BlockTrace:
        """Return the trace without its partial blocks, whose tokens are then computed each time."""
        kept = np.ones(len(self.blocks), bool)
        ends = self.partial & (self.asked_blocks > 0)
        kept[self.offsets[:-1][ends] + self.asked_blocks[ends] - 1] = False
        offsets = np.concatenate([[0], np.cumsum(self.lengths - ends)]).astype(np.int64)
        blocks = numbered_chains(self.blocks[kept], offsets)
        return replace(self, blocks=blocks, offsets=offsets, partial=np.zeros(len(self), bool))

    def __repr__(self) -> str:
        requests, blocks = counted(len(self), "request"), counted(len(self.blocks), "block")
        size = counted(self.block_tokens, "token")
        return f"{self.name}: {requests}, {blocks} of {size}, {self.unique:,} different"


def _marked(size: int, places: np.ndarray) -> np.ndarray:
    marks = np.zeros(size, np.int64)
    marks[places] = 1
    return marks


def block_trace(
    name: str,
    block_tokens: int,
    chains: Sequence[Sequence[int] | np.ndarray],
    *,
    times: Sequence[float] | np.ndarray | None = None,
    input_tokens: Sequence[int] | np.ndarray | None = None,
    output_tokens: Sequence[int] | np.ndarray | None = None,
    sessions: Sequence[int] | np.ndarray | None = None,
    notes: Mapping[str, Sequence[int]] | None = None,
) -> BlockTrace:
    """Make a trace of chains of block ids; requests are sorted by time, those of one time stay in their order.

    Args:
        chains: the ids of the blocks of each request, any int64. Ids that are not hashes over what precedes them may
            be given, too: a block is then named by its chain.
        times: seconds; else 0, 1, 2, ...
        input_tokens: tokens of each prompt; else those of its blocks. With fewer than its blocks hold, the last is
            partial; with more, they are in no block.
        sessions: numbers of conversations; else all differ.
        notes: the columns ``answer_blocks``, ``tail_blocks`` and ``tail_tokens``; else zeros.

    Raises:
        TraceError: a prompt has fewer tokens than its blocks but the last hold, or a column has another length.
    """
    n = len(chains)
    lengths = np.fromiter((len(chain) for chain in chains), np.int64, n)
    return trace_of_arrays(
        name,
        block_tokens,
        [chain if isinstance(chain, np.ndarray) else np.array(chain, np.int64) for chain in chains],
        lengths,
        times=np.arange(n, dtype=np.float64) if times is None else np.asarray(times, np.float64),
        input_tokens=lengths * block_tokens if input_tokens is None else np.asarray(input_tokens, np.int64),
        output_tokens=np.zeros(n, np.int64) if output_tokens is None else np.asarray(output_tokens, np.int64),
        sessions=np.arange(n, dtype=np.int32) if sessions is None else np.asarray(sessions, np.int32),
        notes={name: np.asarray(values, np.int64) for name, values in (notes or {}).items()},
    )


def trace_of_arrays(
    name: str,
    block_tokens: int,
    ids: np.ndarray | Sequence[np.ndarray],
    lengths: np.ndarray,
    *,
    times: np.ndarray,
    input_tokens: np.ndarray,
    output_tokens: np.ndarray,
    sessions: np.ndarray,
    notes: Mapping[str, np.ndarray] | None = None,
) -> BlockTrace:
    """Make a trace as :func:`block_trace` does, of arrays; ``ids`` of all chains may lie behind one another."""
    if block_tokens < 1:
        raise TraceError(f"blocks of {block_tokens} cannot be; use 1 token or more")
    if len(times) != len(lengths) or len(input_tokens) != len(lengths):
        raise TraceError("the columns of a trace differ in length; give one value a request")
    order = np.argsort(times, kind="stable")
    is_sorted = not (order[1:] < order[:-1]).any()
    if not (isinstance(ids, np.ndarray) and is_sorted):
        if isinstance(ids, np.ndarray):
            ids = np.split(ids, np.cumsum(lengths[:-1]))
        ids = np.concatenate([ids[at] for at in order]) if len(ids) else np.empty(0, np.int64)
    if not is_sorted:
        lengths = lengths[order]
        times, input_tokens = times[order], input_tokens[order]
        output_tokens, sessions = output_tokens[order], sessions[order]
        notes = {name: values[order] for name, values in (notes or {}).items()}
    notes = notes or {}
    asked = lengths - notes.get("answer_blocks", 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    filled = asked > 0
    if (filled & (input_tokens <= (asked - 1) * block_tokens)).any():
        at = int(np.argmax(filled & (input_tokens <= (asked - 1) * block_tokens)))
        raise TraceError(
            f"request {at} has {counted(int(asked[at]), 'block')} of {counted(block_tokens, 'token')}, but only "
            f"{counted(int(input_tokens[at]), 'token')}; give as many ids as its tokens fill"
        )
    return BlockTrace(
        name,
        block_tokens,
        times,
        input_tokens,
        output_tokens,
        sessions,
        numbered_chains(ids, offsets),
        offsets,
        filled & (input_tokens < asked * block_tokens),
        **notes,
    )
