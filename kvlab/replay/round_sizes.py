"""Sizes of three digits, such as 12.4GB: what a plan chooses from, and how they are written."""

from __future__ import annotations

from kvlab.replay.capacity import Capacity, read_capacity
from kvlab.replay.trace import BlockTrace

DIGITS = 3
_FIRST, _COUNT = 10 ** (DIGITS - 1), 9 * 10 ** (DIGITS - 1)
_BYTES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"), (1, "B"))
_TOKENS = ((10**6, "Mtokens"), (10**3, "ktokens"), (1, "tokens"))


class RoundSizes:
    """Numbers the sizes of three digits: the next number is the next size, at most a hundredth larger.

    Args:
        trace: what capacities are for.
        token_bytes: bytes of KV a token; 0: sizes are in tokens.
    """

    def __init__(self, trace: BlockTrace, token_bytes: int) -> None:
        self._trace, self._token_bytes = trace, token_bytes

    def number(self, tokens: int) -> int:
        """Return the number of the smallest size that holds so many tokens."""
        wanted, power = max(_FIRST, tokens * (self._token_bytes or 1)), 0
        while wanted > (_FIRST * 10 - 1) * 10**power:
            power += 1
        number = power * _COUNT + -(-wanted // 10**power) - _FIRST
        while self.capacity(number).amount < tokens:  # written decimals may be read a little lower
            number += 1
        return number

    def capacity(self, number: int) -> Capacity:
        """Return the capacity of a number."""
        power, place = divmod(number, _COUNT)
        size = (_FIRST + place) * 10**power
        for unit, name in _BYTES if self._token_bytes else _TOKENS:
            if size >= unit:
                return read_capacity(f"{size / unit:.10g}{name}", self._trace, token_bytes=self._token_bytes)
        raise AssertionError("sizes are at least one")
