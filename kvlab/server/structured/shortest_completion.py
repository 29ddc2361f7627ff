"""Short completions: the tokens that complete a text under a grammar when few tokens are left."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from kvlab.server.structured.tool_formats import XML_END

# Characters that close most come first; among equals the shortest token wins, in forced text the longest.
ORDER = '}])>",:'


class ShortestCompletion:
    """Finds short completions: it always takes the allowed token that closes most. Stateless after construction."""

    def __init__(self, tokenizer: LLTokenizer, size: int, end_tokens: Set[int]) -> None:
        self.end = min(end_tokens)
        self._end_tokens = sorted(end_tokens)
        self._size = size
        self._tags = [tokenizer.tokenize_str(tag) for tag in (XML_END, "</function>")]
        texts = [b"" if tokenizer.is_special_token(i) else tokenizer.decode_bytes([i]) for i in range(size)]
        length = np.array([min(len(text), 99) for text in texts], np.int64)
        rank = np.full(size, 50)
        for i, text in enumerate(texts):
            first = text.strip()[:1].decode("latin-1")
            if not first:
                rank[i] = 80 if text else 60
            elif first.isdigit() or first == "-" or b"{" in text or b"[" in text:
                rank[i] = 70
            elif first in ORDER:
                rank[i] = ORDER.index(first)
        # Short closing tokens, long words: a forced key or marker then takes fewer tokens.
        self._outside = rank * 1000 + np.where(rank < len(ORDER), length, 500 - length)
        quotes = np.array([text[:1] == b'"' for text in texts])
        self._inside = np.where(quotes, length, self._outside + 10_000)
        self._letters = [i for i, text in enumerate(texts) if text in (b"q", b"}")]

    def plan(self, matcher: LLMatcher, limit: int) -> list[int]:
        """Return the tokens that complete the text, with the end token where one is needed; at most ``limit``."""
        matcher = matcher.deep_copy()
        tokens: list[int] = []
        while len(tokens) < limit and not matcher.is_stopped():
            step = self._choose(matcher)
            tokens += step
            if not matcher.consume_tokens(step):
                break
        return tokens

    def fits(self, matcher: LLMatcher, token: int, limit: int) -> bool:
        """True when ``token`` may come next and the text can then be completed with ``limit`` tokens more."""
        matcher = matcher.deep_copy()
        return matcher.try_consume_tokens([token]) == 1 and len(self.plan(matcher, limit + 1)) <= limit

    def _choose(self, matcher: LLMatcher) -> list[int]:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[: self._size]
        for token in self._end_tokens:
            if bits[token]:
                return [token]
        # A rare letter and a brace are both allowed inside a string only: a quote ends it.
        inside = bool(self._letters) and all(bits[i] for i in self._letters)
        for tag in self._tags[:1] if inside else self._tags:
            if matcher.validate_tokens(tag) == len(tag):
                return tag
        cost = np.where(bits.astype(bool), self._inside if inside else self._outside, np.iinfo(np.int64).max)
        return [int(cost.argmin())]
