"""JSON from clients: its depth and its number of values are bounded before it is parsed."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson

from kvlab.server.errors import ApiError
from kvlab.server.limits import MAX_EXACT_ESCAPES, MAX_JSON_DEPTH, MAX_JSON_VALUES

CHUNK_BYTES = 131_072
"""Bytes scanned at a time. Between two chunks, and within most of NumPy's functions, other threads run."""
LONG_INTEGER = re.compile(rb"[0-9]{19}")
QUOTE, BACKSLASH = ord('"'), ord("\\")


def parse_json(body: bytes) -> Any:
    """Parse a request's body. Raises ApiError 400 for text that is no JSON, or has too many or too deep values."""
    scan = JsonScan()
    for start in range(0, len(body), CHUNK_BYTES):
        scan.add(body[start : start + CHUNK_BYTES])
        scan.check()
    try:
        if not scan.has_long_integer:
            return orjson.loads(body)
        if scan.escapes > MAX_EXACT_ESCAPES:
            raise ApiError(400, "integers of more than 18 digits are too slow to read in so long a text: send strings")
        return json.loads(body, parse_constant=_refuse_constant)  # orjson would round such integers
    except ValueError as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(400, f"the request is not valid JSON in UTF-8: {error}") from error


class JsonScan:
    """Measures a JSON text, given in chunks, without parsing it. What is no JSON has figures without a meaning.

    Attributes:
        depth: how deep lists and objects have been nested so far.
        values: at least the number of values: separators and opening brackets outside strings.
        escapes: backslashes.
        has_long_integer: 19 digits or more follow each other outside strings.
    """

    def __init__(self) -> None:
        self.depth = self.values = self.escapes = 0
        self.has_long_integer = False
        self._level = 0
        self._in_string = False
        self._escaped = False  # the next byte follows an odd number of backslashes
        self._digits = b""  # the last bytes outside strings

    def check(self) -> None:
        """Raise ApiError 400 when a limit is exceeded."""
        if self.depth > MAX_JSON_DEPTH:
            raise ApiError(400, f"the request is nested too deeply: at most {MAX_JSON_DEPTH} levels")
        if self.values > MAX_JSON_VALUES:
            raise ApiError(400, f"the request has too many values: at most {MAX_JSON_VALUES} in all")

    def add(self, chunk: bytes) -> None:
        """Measure the next bytes."""
        text = np.frombuffer(chunk, np.uint8)
        quotes = self._unescaped_quotes(text)
        # Odd where a string is open; an opening quote counts as inside, a closing one as outside.
        toggles = np.zeros(len(text), np.uint32)
        toggles[quotes] = 1
        inside = (np.cumsum(toggles, dtype=np.uint32) + self._in_string) & 1
        self._in_string ^= bool(len(quotes) & 1)
        structure = text[inside == 0]
        opens = (structure == ord("[")) | (structure == ord("{"))
        closes = (structure == ord("]")) | (structure == ord("}"))
        levels = self._level + np.cumsum(opens.astype(np.int32) - closes.astype(np.int32))
        if len(levels):
            self.depth = max(self.depth, int(levels.max()))
            self._level = int(levels[-1])
        separators = (structure == ord(",")) | (structure == ord(":"))
        self.values += int(np.count_nonzero(opens)) + int(np.count_nonzero(separators))
        digits = self._digits + structure.tobytes()
        self.has_long_integer = self.has_long_integer or LONG_INTEGER.search(digits) is not None
        self._digits = digits[-18:]

    def _unescaped_quotes(self, text: np.ndarray) -> np.ndarray:
        """Return the places of quotes after an even number of backslashes."""
        is_backslash = text == BACKSLASH
        backslashes = np.flatnonzero(is_backslash)
        self.escapes += len(backslashes)
        quotes = np.flatnonzero(text == QUOTE)
        carried = self._escaped
        if not len(backslashes):
            self._escaped = False
            return quotes[1:] if carried and len(quotes) and quotes[0] == 0 else quotes
        # Runs of backslashes: their first places, and for each quote the run that ends before it.
        starts = backslashes[np.diff(backslashes, prepend=-2) > 1]
        lengths = np.diff(np.flatnonzero(np.diff(backslashes, prepend=-2, append=len(text) + 2) > 1))
        odd = lengths & 1
        if carried and starts[0] == 0:  # the chunk before ended with the first backslashes of this run
            odd[0] ^= 1
        ends = starts + lengths
        run = np.searchsorted(ends, quotes)
        found = run < len(ends)
        escaped = np.zeros(len(quotes), bool)
        escaped[found] = (ends[run[found]] == quotes[found]) & (odd[run[found]] == 1)
        if carried and len(quotes) and quotes[0] == 0:
            escaped[0] = True
        self._escaped = bool(ends[-1] == len(text) and odd[-1])
        return quotes[~escaped]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
