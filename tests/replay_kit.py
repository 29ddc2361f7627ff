"""Traces for tests of the replay: made by chance, and the public ones beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from kvlab.replay import BlockTrace, block_trace

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_traces = pytest.mark.skipif(not (SHARED / "reference.json").is_file(), reason="../shared/data is not there")

CHAINS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)
"""Chains of contents, each with the tokens that its last block lacks, of four."""


def trace_of(chains: list[tuple[list[int], int]], block_tokens: int = 4) -> BlockTrace:
    """Return a trace of these chains; a partial block is another one than a full block of the same content."""
    ids, tokens = [], []
    for contents, lacks in chains:
        own = [10 * content for content in contents]
        if own:
            own[-1] += lacks
        ids.append(own)
        tokens.append(max(0, len(own) * block_tokens - (lacks if own else 0)))
    return block_trace("made", block_tokens, ids, input_tokens=tokens)
