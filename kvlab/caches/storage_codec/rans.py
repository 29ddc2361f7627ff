"""Entropy coding: range asymmetric numeral systems with static tables, many lanes at once in NumPy.

Duda 2013 (arXiv:1311.2540). Lane ``j`` codes the symbols ``j, j + lanes, j + 2 * lanes, ...`` in a state of 32 bits,
of which 16 leave or enter at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvlab.caches.serialize import PayloadError

PRECISION = 14
TOTAL = 1 << PRECISION
"""Sum of the frequencies of a table."""
LOWEST = 1 << 16
"""Smallest state between two symbols."""
STATE_BYTES = 4


@dataclass(frozen=True)
class Tables:
    """Frequencies of symbols, one table a row.

    Attributes:
        frequency: int64 ``[tables, symbols]``; each row sums to :data:`TOTAL`. A symbol of frequency 0 cannot be coded.
        start: sums of the frequencies before each symbol.
        symbol_at: uint16 ``[tables, TOTAL]``, the symbol of each slot.
    """

    frequency: np.ndarray
    start: np.ndarray
    symbol_at: np.ndarray

    @classmethod
    def of(cls, frequency: np.ndarray) -> Tables:
        """Make tables of frequencies. Raises ValueError where a row does not sum to TOTAL."""
        frequency = np.asarray(frequency, np.int64)
        if (frequency < 0).any() or (frequency.sum(axis=1) != TOTAL).any():
            raise ValueError(f"the frequencies of each table must sum to {TOTAL}")
        start = np.cumsum(frequency, axis=1) - frequency
        symbols = np.arange(frequency.shape[1], dtype=np.uint16)
        return cls(frequency, start, np.stack([np.repeat(symbols, row) for row in frequency]))


def encode(symbols: np.ndarray, table: np.ndarray, tables: Tables, lanes: int) -> bytes:
    """Return the code of ``symbols``, int ``[n]``, each under its ``table``, int ``[n]``.

    Raises ValueError for a symbol of frequency 0.
    """
    frequency, start = tables.frequency[table, symbols], tables.start[table, symbols]
    if (frequency == 0).any():
        raise ValueError("a symbol has frequency 0 in its table")
    steps = -(-len(symbols) // lanes)
    # Symbols that fill the last step up have all the frequency, and leave the state as it is.
    frequency = np.pad(frequency, (0, steps * lanes - len(symbols)), constant_values=TOTAL).reshape(steps, lanes)
    start = np.pad(start, (0, steps * lanes - len(symbols))).reshape(steps, lanes)
    state, words = np.full(lanes, LOWEST, np.int64), []
    for step in range(steps - 1, -1, -1):
        often, first = frequency[step], start[step]
        is_full = state >= often << (32 - PRECISION)
        words.append(state[is_full].astype(np.uint16))
        state = np.where(is_full, state >> 16, state)
        whole, rest = np.divmod(state, often)
        state = (whole << PRECISION) + rest + first
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)
    return state.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def decode(data: bytes, table: np.ndarray, tables: Tables, lanes: int) -> np.ndarray:
    """Return the symbols, int64 ``[n]``, of a code that :func:`encode` made under the same tables.

    Raises PayloadError where the code is too short, too long, or no such code.
    """
    if len(data) < STATE_BYTES * lanes or (len(data) - STATE_BYTES * lanes) % 2:
        raise PayloadError("the code is cut off")
    state = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    stream = np.frombuffer(data, "<u2", offset=STATE_BYTES * lanes).astype(np.int64)
    steps, at = -(-len(table) // lanes), 0
    padded = np.pad(table, (0, steps * lanes - len(table)), constant_values=-1).reshape(steps, lanes)
    out = np.zeros((steps, lanes), np.int64)
    for step in range(steps):
        used = padded[step]
        slot = state & (TOTAL - 1)
        symbol = tables.symbol_at[used, slot].astype(np.int64)
        moved = tables.frequency[used, symbol] * (state >> PRECISION) + slot - tables.start[used, symbol]
        state = np.where(used < 0, state, moved)
        out[step] = symbol
        is_low = state < LOWEST
        count = int(is_low.sum())
        if at + count > len(stream):
            raise PayloadError("the code is cut off")
        state[is_low] = state[is_low] << 16 | stream[at : at + count]
        at += count
    if at != len(stream) or (state != LOWEST).any():
        raise PayloadError("the code does not end where its symbols do")
    return out.ravel()[: len(table)]
