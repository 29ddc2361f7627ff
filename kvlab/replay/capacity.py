"""``Capacity``: how much a tier holds, in bytes, tokens or blocks, or as a share of what a trace asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvlab.counts import counted
from kvlab.errors import PolicyError
from kvlab.policies import format_bytes, parse_bytes
from kvlab.replay.errors import TraceError
from kvlab.replay.trace import BlockTrace

BLOCKS, TOKENS = "blocks", "tokens"
"""The units that a tier of a replay counts in."""


@dataclass(frozen=True)
class Capacity:
    """Holds the capacity of one tier for one trace.

    Attributes:
        text: what the user wrote, such as ``5%``, ``2GB``, ``8000blocks``, ``1Mtokens`` or ``inf``.
        unit: ``blocks``: every block takes one place, a partial one, too. ``tokens``: a partial block takes its own
            tokens only, as the blocks of kvlab's store do.
        amount: how many of these.
        share: the amount over the trace's footprint in that unit.
    """

    text: str
    unit: str
    amount: int
    share: float

    def __str__(self) -> str:
        return self.text


def read_capacity(text: str | int, trace: BlockTrace, *, token_bytes: int = 0) -> Capacity:
    """Read a capacity for a trace.

    Percentages are of the trace's different blocks, rounded down, and count in blocks; numbers without unit are
    blocks; sizes such as ``2GB`` become tokens of ``token_bytes`` each.

    Raises:
        TraceError: not a capacity, a size without ``token_bytes``, or room for not one block.
    """
    words = str(text).strip()
    if words.lower() in ("inf", "infinite"):
        return Capacity("inf", BLOCKS, max(trace.unique, 1), 1.0)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", words):
        return _of_blocks(words, int(float(found[1]) / 100 * trace.unique), trace)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kM]?)\s*(blocks?|tokens?|)", words):
        amount = int(float(found[1]) * {"": 1, "k": 1000, "M": 10**6}[found[2]])
        if not found[3].startswith("token"):
            return _of_blocks(words, amount, trace)
        return _of_tokens(words, amount, trace)
    try:
        size = parse_bytes(words)
    except PolicyError:
        raise TraceError(
            f"cannot read the capacity '{words}': write a share such as 5%, a size such as 2GB, a number with its unit "
            "such as 8000blocks or 1Mtokens, or inf"
        ) from None
    if token_bytes < 1:
        raise TraceError(
            f"the capacity {words} is in bytes: say how many a token takes, such as --kv-bytes 131072, or write a "
            "share such as 5%"
        )
    return _of_tokens(format_bytes(size), size // token_bytes, trace)


def _of_blocks(text: str, amount: int, trace: BlockTrace) -> Capacity:
    if amount < 1:
        raise TraceError(f"the capacity {text} holds no block of {trace.name}, which has {trace.unique:,}; write more")
    return Capacity(text, BLOCKS, amount, amount / max(trace.unique, 1))


def _of_tokens(text: str, amount: int, trace: BlockTrace) -> Capacity:
    if amount < trace.block_tokens:
        raise TraceError(
            f"the capacity {text} holds {counted(amount, 'token')}, less than a block of {trace.block_tokens}; "
            "write more"
        )
    return Capacity(text, TOKENS, amount, amount / max(int(trace.sizes.sum()), 1))
