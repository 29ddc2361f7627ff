"""Numbers that every JSON reader takes: grammars allow any count of digits, readers do not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

MAX_INTEGER_DIGITS = 40
MAX_FRACTION_DIGITS = 40
MAX_MULTIPLE_DIGITS = 18
MAX_EXPONENT_DIGITS = 2
"""With 40 digits before it, a number stays below 1e140: far from infinity, which begins at 1.8e308."""
TAIL_BYTES = 128
"""Text before a token that is looked at; longer than any number within the limits."""
_NUMBER_AT_END = re.compile(rb"(?:^|[\s:,\[>])(-?[0-9][0-9.eE+-]*)$")
_BOUNDED = re.compile(
    rb"-?\d{1,%d}(\.\d{0,%d})?([eE][+-]?\d{0,%d})?" % (MAX_INTEGER_DIGITS, MAX_FRACTION_DIGITS, MAX_EXPONENT_DIGITS)
)
_LEADING = re.compile(rb"[-+0-9.eE]+")


class NumberBounds:
    """Finds the tokens that would make a number too long. Stateless after construction.

    Args:
        texts: the bytes of each token; empty for special ones.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        found = ((i, _LEADING.match(text)) for i, text in enumerate(texts))
        self._leading = [(i, match.group()) for i, match in found if match is not None]
        # After a short number without an exponent, only these may lead beyond the limits.
        self._unusual = [(i, text) for i, text in self._leading if len(text) > 8 or b"e" in text.lower()]

    def restrict(self, allowed: np.ndarray, tail: bytes) -> None:
        """Forbid in ``allowed``, bool ``[vocabulary]``, tokens that lead beyond the limits; never all of them.

        Args:
            tail: the text so far, its last :data:`TAIL_BYTES`. It does not end inside a free string.
        """
        match = _NUMBER_AT_END.search(tail)
        if match is None:
            return
        number = match.group(1)
        short = len(number) < MAX_INTEGER_DIGITS - 8 and b"e" not in number.lower()
        pairs = self._unusual if short else self._leading
        beyond = [token for token, text in pairs if allowed[token] and not _is_bounded(number + text)]
        if len(beyond) < int(allowed.sum()):  # else the grammar wants so many digits
            allowed[beyond] = False


def is_long_number(tail: bytes) -> bool:
    """True when ``tail`` ends in a number of as many digits as a multiple should have: it ends where it next can."""
    match = _NUMBER_AT_END.search(tail)
    return match is not None and len(match.group(1)) >= MAX_MULTIPLE_DIGITS


def _is_bounded(number: bytes) -> bool:
    return _BOUNDED.fullmatch(number) is not None
