"""Short completions: the tokens that complete a text under a grammar when few tokens are left."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence, Set
from itertools import product
from typing import NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer

# Characters that close most come first; among equals the shortest token wins, in forced text the longest.
ORDER = '}]",:'
_CLOSING_RANKS = len(ORDER)
MAX_SEARCHED_DIGITS = 3
"""Digits that are tried to end a number: enough for multiples of up to 1,000."""
_REPEAT_COST = 200_000
"""Added for each earlier choice of such a character: under a pattern, one kind of characters may go on for ever."""


_LAZY_TEXT = re.compile(r"\[lazy\]: /\(\.\|\\n\)\*(.*)/$", re.MULTILINE)
_ESCAPED = re.compile(r"\\(.)")
_LAST_LITERAL = re.compile(r'^(?:call_\d+|start):.*?("(?:[^"\\]|\\.)*")[ )+*?]*$', re.MULTILINE)


class Hints(NamedTuple):
    """What helps to complete texts under one grammar.

    Args:
        endings: tokens of texts that may complete a string under a pattern or format, the shortest first.
        multiples: some of its numbers are multiples, so that their last digits matter.
        text_ends: tokens of texts that end text without quotes.
        call_ends: tokens of texts that end a call.
    """

    endings: tuple[list[int], ...] = ()
    multiples: bool = False
    text_ends: tuple[list[int], ...] = ()
    call_ends: tuple[list[int], ...] = ()


NO_HINTS = Hints()


class ShortestCompletion:
    """Finds short completions: it always takes the allowed token that closes most. Stateless after construction."""

    def __init__(self, tokenizer: LLTokenizer, size: int, end_tokens: Set[int]) -> None:
        self.end = min(end_tokens)
        self.end_tokens = sorted(end_tokens)
        self._tokenizer, self._size = tokenizer, size
        self.texts = [b"" if tokenizer.is_special_token(i) else tokenizer.decode_bytes([i]) for i in range(size)]
        length = np.array([min(len(text), 99) for text in self.texts], np.int64)
        rank = np.full(size, 50)
        is_short = np.zeros(size, bool)
        kinds: dict[str, int] = {}
        self._kind = np.zeros(size, np.int64)
        for i, text in enumerate(self.texts):
            first = text.strip()[:1].decode("latin-1")
            kind = "a" if first.isalpha() else "0" if first.isdigit() else first
            self._kind[i] = kinds.setdefault(kind, len(kinds))
            if not first:
                rank[i] = 80 if text else 60
            elif b"{" in text or b"[" in text:
                rank[i] = 90
            elif first.isdigit() or first == "-":
                rank[i] = 70
                is_short[i] = first.isdigit()
            elif first in ORDER:
                rank[i] = ORDER.index(first)
        self._closes = rank < _CLOSING_RANKS
        self._kinds = len(kinds)
        # Short closing tokens, long words: a forced key or marker then takes fewer tokens.
        self._outside = rank * 1000 + np.where(self._closes | is_short, length, 500 - length)
        quotes = np.array([text[:1] == b'"' for text in self.texts])
        self._quotes = np.flatnonzero(quotes)
        self._longest = 1000 - length
        self._inside = np.where(quotes, length, self._outside + 10_000)
        single = {text: i for i, text in enumerate(self.texts) if text in (b"{", b"}", b"[", b"]")}
        pairs = ((b"{", b"}"), (b"[", b"]"))
        self._empty = [[single[a], single[b]] for a, b in pairs if a in single and b in single]
        self._digits = [i for i, text in enumerate(self.texts) if len(text) == 1 and text.isdigit()]
        ends = (b",", b"}", b"]", b"\n")
        self._number_ends = [i for i, text in enumerate(self.texts) if text in ends] + self.end_tokens
        self._is_numeric = np.array([bool(text) and not text.strip(b"0123456789.-+eE") for text in self.texts])
        self._newline = [i for i, text in enumerate(self.texts) if text == b"\n"]
        self._is_special = np.array([tokenizer.is_special_token(i) for i in range(size)])
        self._letters = [i for i, text in enumerate(self.texts) if text in (b"q", b"}")]

    def endings(self, texts: Sequence[str]) -> tuple[list[int], ...]:
        """Return the tokens of each end of ``texts`` with a quote after it, the shortest first."""
        ends = {text[i:] + '"' for text in texts for i in range(len(text))}
        return tuple(sorted((self._tokenizer.tokenize_str(end) for end in ends), key=len))

    def hints(self, lark: str, endings: Sequence[str], *, multiples: bool) -> Hints:
        """Return the hints of a grammar: ``endings`` of strings, and those of texts and calls as Lark has them."""
        text_ends = {_ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], text) for text in _LAZY_TEXT.findall(lark)}
        call_ends = {json.loads(text) for text in _LAST_LITERAL.findall(lark)}

        def encoded(texts: Set[str]) -> tuple[list[int], ...]:
            return tuple(self._tokenizer.tokenize_bytes(text.encode()) for text in sorted(texts) if text)

        return Hints(self.endings(endings), multiples, encoded(text_ends), encoded(call_ends))

    def plan(self, matcher: LLMatcher, limit: int, hints: Hints = NO_HINTS) -> list[int]:
        """Return the tokens that complete the text, with the end token where one is needed.

        At most ``limit`` and a few more: a longer completion is returned cut.
        """
        matcher = matcher.deep_copy()
        tokens: list[int] = []
        chosen = np.zeros(self._kinds, np.int64)
        while len(tokens) < limit and not matcher.is_stopped():
            step = self._choose(matcher, hints, chosen)
            tokens += step
            if not matcher.consume_tokens(step):
                break
        return tokens

    def completes(self, matcher: LLMatcher, tokens: Sequence[int]) -> bool:
        """True when exactly ``tokens`` complete the text."""
        if not tokens:
            return bool(matcher.is_stopped())
        copy = matcher.deep_copy()
        return copy.try_consume_tokens(list(tokens)) == len(tokens) and bool(copy.is_stopped())

    def in_free_string(self, allowed: np.ndarray) -> bool:
        """True inside a string without a pattern: a rare letter and a brace are both allowed nowhere else."""
        return bool(self._letters) and bool(allowed[self._letters].all())

    def end_of_number(self, matcher: LLMatcher, allowed: np.ndarray) -> list[int]:
        """Return up to three digits that end a number which may not end yet, as under multipleOf; else nothing."""
        if not allowed[self._digits].any() or not self._is_numeric[allowed].all():
            return []
        for count in range(1, MAX_SEARCHED_DIGITS + 1):
            for digits in product(self._digits, repeat=count):
                for end in self._number_ends:
                    if matcher.validate_tokens([*digits, end]) > count:
                        return list(digits)
        return []

    def _choose(self, matcher: LLMatcher, hints: Hints, chosen: np.ndarray) -> list[int]:
        allowed = allowed_tokens(matcher, self._size)
        for token in self.end_tokens:
            if allowed[token]:
                return [token]
        letters = self.in_free_string(allowed)
        inside = letters and bool(allowed[self._quotes].any())
        if letters and allowed[self._newline].any():  # text without quotes
            specials = np.flatnonzero(allowed & self._is_special)
            ends = ([int(token)] for token in specials) if len(specials) else hints.text_ends
        else:
            ends = () if letters else hints.call_ends
        for end in ends:
            if matcher.validate_tokens(end) == len(end):
                return end
        if inside:
            costs = self._inside
        else:
            for ending in hints.endings:
                if allowed[ending[0]] and matcher.validate_tokens(ending) == len(ending):
                    return ending
            if not letters:
                for empty in self._empty:
                    if allowed[empty[0]] and matcher.validate_tokens(empty) == len(empty):
                        return empty
                if hints.multiples and (number := self.end_of_number(matcher, allowed)):
                    return number
            costs = (self._longest if letters else self._outside) + _REPEAT_COST * chosen[self._kind]
        token = int(np.where(allowed, costs, np.iinfo(np.int64).max).argmin())
        if self._closes[token]:
            chosen[:] = 0
        else:
            chosen[self._kind[token]] += 1
        return [token]


def allowed_tokens(matcher: LLMatcher, size: int) -> np.ndarray:
    """Return which tokens may come next, bool ``[size]``."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    if len(bits) >= size:
        return bits[:size].astype(bool)
    return np.concatenate([bits, np.zeros(size - len(bits), np.uint8)]).astype(bool)
