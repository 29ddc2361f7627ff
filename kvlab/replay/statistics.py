"""What a trace holds, and what a cache without limits would hit of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvlab.replay.trace import BlockTrace


@dataclass(frozen=True)
class TraceStatistics:
    """Holds the size of a trace, and the hit ratios of a cache that never evicts.

    ``by_block`` counts places of chains, ``by_token`` tokens of prompts; the means give every request the same weight.
    Only prefixes count as hits; those that a request could find without its prefix are in ``beside_prefix``.

    Attributes:
        requests: how many, of which ``empty`` have no block.
        blocks: places of all chains.
        unique: different blocks.
        span_s: from the first request to the last.
        by_block, by_token: hits of all requests over what all asked for.
        mean_by_block: mean over the requests with blocks; ``mean_by_token`` over those with tokens.
        beside_prefix: requests that meet known blocks behind an unknown one.
    """

    requests: int
    empty: int
    blocks: int
    unique: int
    input_tokens: int
    output_tokens: int
    longest: int
    span_s: float
    by_block: float
    by_token: float
    mean_by_block: float
    mean_by_token: float
    beside_prefix: int


def infinite_hits(trace: BlockTrace) -> tuple[np.ndarray, np.ndarray]:
    """Return the known blocks of each request's prefix, and all its known blocks, int64 ``[requests]`` each."""
    first = np.full(trace.unique, np.iinfo(np.int64).max)
    owner = np.repeat(np.arange(len(trace)), trace.lengths)
    np.minimum.at(first, trace.blocks, owner)
    known = first[trace.blocks] < owner
    every = np.bincount(owner[known], minlength=len(trace))
    # The prefix ends at the first unknown place.
    places = np.arange(len(trace.blocks)) - np.repeat(trace.offsets[:-1], trace.lengths)
    prefix = trace.lengths.copy()
    np.minimum.at(prefix, owner[~known], places[~known])
    return np.minimum(prefix, trace.asked_blocks), every


def statistics(trace: BlockTrace) -> TraceStatistics:
    """Count what a trace holds."""
    prefix, every = infinite_hits(trace)
    tokens = trace.hit_tokens(prefix)
    asked = int(trace.input_tokens.sum())
    filled, spoken = trace.asked_blocks > 0, trace.input_tokens > 0
    return TraceStatistics(
        requests=len(trace),
        empty=int((~filled).sum()),
        blocks=len(trace.blocks),
        unique=trace.unique,
        input_tokens=asked,
        output_tokens=int(trace.output_tokens.sum()),
        longest=int(trace.input_tokens.max(initial=0)),
        span_s=float(trace.times[-1] - trace.times[0]) if len(trace) else 0.0,
        by_block=ratio(prefix.sum(), trace.asked_blocks.sum()),
        by_token=ratio(tokens.sum(), asked),
        mean_by_block=mean(prefix[filled] / trace.asked_blocks[filled]),
        mean_by_token=mean(tokens[spoken] / trace.input_tokens[spoken]),
        beside_prefix=int((every > prefix).sum()),
    )


def ratio(part: float, whole: float) -> float:
    """Return the share of a whole; 0 of nothing."""
    return float(part) / float(whole) if whole else 0.0


def mean(values: np.ndarray) -> float:
    """Return the mean; 0 of nothing."""
    return float(values.mean()) if len(values) else 0.0
