"""Grammars on the decoder's logits: a token that cannot lead to valid text is never sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from kvlab.backends.device import overlaps_with_host
from kvlab.server.structured.numbers import TAIL_BYTES, NumberBounds, is_long_number
from kvlab.server.structured.shortest_completion import Hints, ShortestCompletion, allowed_tokens

CANDIDATE_TOKENS = 8
"""Near the token limit, so many of the likeliest tokens are tried for whether the text can still be completed."""
MAX_REUSED_TOKENS = 8
"""Tokens at the start of a known completion that may be left out to find the one of the next position."""
THINKING_SPARE_TOKENS = 2
NUMBER_BYTES = tuple(bytes([byte]) for byte in b"0123456789.eE+-")


class Grammar(Protocol):
    """What a constraint needs of a compiled grammar, see :class:`~kvlab.server.structured.grammar.CompiledGrammar`."""

    @property
    def shortest(self) -> tuple[int, ...]: ...
    @property
    def growth(self) -> int: ...
    @property
    def hints(self) -> Hints: ...

    def deep_copy(self) -> LLMatcher: ...


class Vocabulary:
    """What is known of the tokens of one model."""

    def __init__(self, tokenizer: LLTokenizer, completion: ShortestCompletion) -> None:
        self.tokenizer, self.completion = tokenizer, completion
        self.numbers = NumberBounds(completion.texts)


class Trigger:
    """A text that starts a grammar when the model writes it; the grammar begins with that text.

    Args:
        text: the text.
        matcher: the grammar.
        once: the grammar holds to the end of the answer.
        with_text: the grammar's own text begins with ``text``. Otherwise the answer needs what follows on it: near the
            token limit ``text`` is written, so that the shortest text of the grammar still fits.
    """

    def __init__(self, text: str, matcher: Grammar, *, once: bool = False, with_text: bool = True) -> None:
        self.text, self.matcher, self.once, self.with_text = text.encode(), matcher, once, with_text


class Constraint:
    """A logits processor for one sequence. Decoder thread only.

    mlx-lm calls processors with the tokens so far while the newest of them is still being computed. On a GPU the
    forward pass is started first; the wait for that token and the computation of the mask overlap with it. After a
    pause the processor is called with the same tokens once more.

    A text that can be completed within ``max_tokens`` is: where one token could bring the shortest completion beyond
    the tokens that are left, only tokens are allowed after which it still fits; at the end it is taken.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_tokens: int, grammar: Grammar | None, trigger: Trigger | None
    ) -> None:
        self._vocabulary, self._completion = vocabulary, vocabulary.completion
        self._tokens_left = max_tokens
        self._trigger = trigger
        self._marker: list[int] = []
        if trigger is not None:
            self._marker = vocabulary.tokenizer.tokenize_bytes(trigger.text, parse_special=True)
        self._matcher: LLMatcher | None = None
        self._written = b""
        self._position = 0
        self._forced: list[int] = []
        self._forced_position = 0
        self._known: list[int] = []
        self._choices: dict[int, list[int]] = {}
        self._check_at = max_tokens
        self._starts_early = overlaps_with_host()
        self.failure = ""
        if grammar is not None:
            self._begin(grammar, grammar.deep_copy())

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if 0 < self._position < tokens.size:
            newest = tokens[-1:]
            mx.async_eval(newest)  # queued before the forward pass: ready when the last step is
            if self._starts_early:
                mx.async_eval(logits)
            self._advance(int(np.array(newest)[0]))
        self._position = tokens.size
        if (step := self._position - self._forced_position) < len(self._forced):
            return _allow_only(logits, [self._forced[step]])
        if self._matcher is None:
            return self._before_trigger(logits)
        if self._tokens_left <= self._check_at:
            return self._look_ahead(self._matcher, logits)
        return self._masked(self._matcher, logits)

    def _begin(self, grammar: Grammar, matcher: LLMatcher) -> None:
        self._grammar, self._matcher = grammar, matcher
        self._known, self._check_at = list(grammar.shortest), self._tokens_left
        self._forced, self._choices = [], {}

    def _advance(self, token: int) -> None:
        self._tokens_left -= 1
        self._written = (self._written + self._text(token))[-max(TAIL_BYTES, 256) :]
        if self._matcher is not None:
            self._matcher.consume_token(token)
            if token in self._choices:
                self._known = self._choices[token]
            self._choices = {}
            if self._matcher.is_error():
                self._fail(self._matcher)
            elif self._trigger is not None and self._matcher.is_stopped():
                self._matcher, self._forced, self._written = None, [], b""  # the call is complete: free text follows
        elif self._trigger is not None:
            self._look_for_trigger(self._trigger)

    # -- before the grammar -----------------------------------------------------------------------------------------

    def _before_trigger(self, logits: mx.array) -> mx.array:
        """Keep room for the shortest text of the grammar that the trigger starts."""
        trigger = self._trigger
        if trigger is None:
            return logits
        marker = self._marker
        if not trigger.with_text:
            needed = len(trigger.matcher.shortest) + len(marker)
            if needed <= self._tokens_left <= needed + THINKING_SPARE_TOKENS:
                self._force(marker)
                return _allow_only(logits, marker[:1])
        elif len(marker) == 1 and self._tokens_left < len(trigger.matcher.shortest):
            return logits.at[:, mx.array(marker)].add(mx.array(-mx.inf, dtype=logits.dtype))
        return logits

    def _look_for_trigger(self, trigger: Trigger) -> None:
        at = self._written.find(trigger.text)
        if at < 0:
            return
        rest, self._written = self._written[at + len(trigger.text) :], b""
        matcher = trigger.matcher.deep_copy()
        tokenizer = self._vocabulary.tokenizer
        prefix = list(self._marker) if trigger.with_text else []
        prefix += tokenizer.tokenize_bytes(rest) if rest else []
        if matcher.try_consume_tokens(prefix) == len(prefix):
            self._begin(trigger.matcher, matcher)
            self._known = self._known[len(prefix) :]
            self._written = rest
        if trigger.once:
            self._trigger = None

    def _text(self, token: int) -> bytes:
        tokenizer = self._vocabulary.tokenizer
        text: bytes = tokenizer.decode_bytes([token])
        return text.lstrip(b"\xff") if tokenizer.is_special_token(token) else text

    # -- near the token limit ---------------------------------------------------------------------------------------

    def _look_ahead(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        """Allow only tokens after which the text can be completed within the tokens that are left."""
        growth, left = self._grammar.growth, self._tokens_left
        plan = self._plan(matcher, self._known, left, self._written)
        self._known = plan
        spare = left - len(plan)
        if spare <= 0:
            self._force(plan)
            return _allow_only(logits, plan[:1] or [self._completion.end])
        if spare > growth:  # no choice of the next tokens, each the largest, brings the completion beyond the limit
            self._check_at = left - max(1, (spare - growth) // (1 + growth))
            return self._masked(matcher, logits)
        self._check_at = left  # from here on at every call, also at a repeated one after a pause
        masked = self._masked(matcher, logits)
        scores = np.array(masked[0].astype(mx.float32))
        most = min(CANDIDATE_TOKENS, len(scores) - 1)
        self._choices = {}
        for token in map(int, np.argpartition(-scores, most)[:most]):
            if scores[token] > -np.inf and (after := self._after(matcher, token, plan, left - 1)) is not None:
                self._choices[token] = after
        return _allow_only(masked, list(self._choices) or plan[:1] or [self._completion.end])

    def _force(self, tokens: list[int]) -> None:
        self._forced, self._forced_position = tokens, self._position

    def _plan(self, matcher: LLMatcher, known: list[int], limit: int, written: bytes) -> list[int]:
        """Return a completion: an end of ``known`` where one fits, which is found faster."""
        in_number = written[-1:] in NUMBER_BYTES
        for skipped in range(min(MAX_REUSED_TOKENS, len(known))):
            if in_number and self._completion.texts[known[skipped]][:1] in NUMBER_BYTES:
                continue  # the digits of another number would lengthen this one
            if self._completion.completes(matcher, known[skipped:]):
                return known[skipped:]
        return self._completion.plan(matcher, limit + 1, self._grammar.hints)

    def _after(self, matcher: LLMatcher, token: int, plan: list[int], limit: int) -> list[int] | None:
        """Return a completion of at most ``limit`` tokens after ``token``; None where there is none."""
        if plan[:1] == [token]:
            return plan[1:]
        matcher = matcher.deep_copy()
        if matcher.try_consume_tokens([token]) != 1:
            return None
        after = self._plan(matcher, plan, limit, self._text(token) or self._written)
        return after if len(after) <= limit else None

    # -- masks ------------------------------------------------------------------------------------------------------

    def _masked(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        allowed = allowed_tokens(matcher, logits.shape[-1])
        if matcher.is_error():
            self._fail(matcher)
            return _allow_only(logits, [self._completion.end])
        if not self._completion.in_free_string(allowed):
            self._vocabulary.numbers.restrict(allowed, self._written[-TAIL_BYTES:])
            is_long = self._grammar.hints.multiples and is_long_number(self._written[-TAIL_BYTES:])
            if is_long and (last := self._completion.end_of_number(matcher, allowed)):
                return _allow_only(logits, last[:1])
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def _fail(self, matcher: LLMatcher) -> None:
        # An exception here would end every request of the batch.
        self.failure = matcher.get_error().split("\n")[0]
        self._forced = []
        if self._trigger is not None:
            self._matcher = None


def _allow_only(logits: mx.array, tokens: Sequence[int]) -> Any:
    keep = np.zeros(logits.shape[-1], bool)
    keep[list(tokens)] = True
    return mx.where(mx.array(keep), logits, -mx.inf)
