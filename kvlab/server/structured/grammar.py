"""Grammars on the decoder's logits: a token that cannot lead to valid text is never sampled."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import llguidance.hf
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from kvlab.backends.device import overlaps_with_host
from kvlab.models import LoadedModel
from kvlab.server.errors import ApiError
from kvlab.server.structured.shortest_completion import ShortestCompletion
from kvlab.server.structured.tool_formats import quoted

MAX_COMPILED_GRAMMARS = 128
"""Kept for the next requests: an agent sends the same tools with each of them."""
CANDIDATE_TOKENS = 4
"""Near the token limit, so many of the likeliest tokens are tried for whether the text can still be completed."""
MAX_COMPLETION_TOKENS = 512
"""Tokens of the longest completion that is looked for."""


class Grammars:
    """Compiles and keeps the grammars of one model. Thread-safe."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._completion: ShortestCompletion | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def tokenizer(self) -> LLTokenizer:
        """llguidance's copy of the vocabulary, built at first use (about a second for a large one)."""
        if self._tokenizer is None:
            try:
                self._tokenizer = llguidance.hf.from_tokenizer(
                    self._loaded.tokenizer._tokenizer,
                    n_vocab=self._loaded.vocab_size,
                    eos_token=sorted(self._loaded.eos),
                )
            except ValueError as error:
                raise ApiError(400, f"{self._loaded.name} has a tokenizer without grammar support: {error}") from error
        return self._tokenizer

    def literal(self, text: str) -> str:
        """Write Lark for exactly ``text``; special tokens are referred to by number."""
        parts, plain = [], ""
        for token in self._loaded.encode(text):
            if self.tokenizer.is_special_token(token):
                parts += [quoted(plain)] if plain else []
                parts.append(f"<[{token}]>")
                plain = ""
            else:
                plain += self.tokenizer.decode_str([token])
        if plain:
            parts.append(quoted(plain))
        joined = "".join(part for part in parts)
        return " ".join(parts) if "\ufffd" not in joined else quoted(text)

    def compile(self, lark: str) -> LLMatcher:
        """Return a matcher at the grammar's start. Raises ApiError 400 when a schema in it has no grammar."""
        with self._lock:
            matcher = self._compiled.get(lark)
            if matcher is None:
                matcher = LLMatcher(self.tokenizer, lark, log_level=0)
                if matcher.is_error():
                    why = matcher.get_error().split("<state>")[0].split("<grammar>")[0].strip()
                    raise ApiError(400, f"this schema cannot be enforced: {' '.join(why.split())[:400]}")
                self._compiled[lark] = matcher
                if len(self._compiled) > MAX_COMPILED_GRAMMARS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(lark)
            return matcher.deep_copy()

    def constraint(
        self, *, max_tokens: int, matcher: LLMatcher | None = None, trigger: Trigger | None = None
    ) -> Constraint:
        """Make a logits processor that enforces ``matcher`` from the first token, or a trigger's once it is met."""
        if self._completion is None:
            self._completion = ShortestCompletion(self.tokenizer, self._loaded.vocab_size, self._loaded.eos)
        return Constraint(self.tokenizer, self._completion, max_tokens, matcher, trigger)


class Trigger:
    """A text that starts a grammar when the model writes it; the grammar begins with that text."""

    def __init__(self, text: str, matcher: LLMatcher, *, once: bool = False, with_text: bool = True) -> None:
        self.text, self.matcher, self.once, self.with_text = text.encode(), matcher, once, with_text


class Constraint:
    """A logits processor for one sequence. Decoder thread only.

    mlx-lm calls processors with the tokens so far while the newest of them is still being computed. On a GPU the
    forward pass is started first; the wait for that token and the computation of the mask overlap with it. After a
    pause the processor is called with the same tokens once more.

    Near ``max_tokens`` only tokens are allowed after which the text can still be completed; at the end the shortest
    completion is taken. So the token limit does not cut JSON apart.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer,
        completion: ShortestCompletion,
        max_tokens: int,
        matcher: LLMatcher | None,
        trigger: Trigger | None,
    ) -> None:
        self._tokenizer, self._completion = tokenizer, completion
        self._tokens_left = max_tokens
        self._matcher, self._trigger = matcher, trigger
        self._tail = b""
        self._position = 0
        self._plan: list[int] | None = None
        self._plan_position = 0
        self._check_at = max_tokens // 2
        self._growth = 0
        self._starts_early = overlaps_with_host()
        self.failure = ""

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if 0 < self._position < tokens.size:
            newest = tokens[-1:]
            mx.async_eval(newest)  # queued before the forward pass: ready when the last step is
            if self._starts_early:
                mx.async_eval(logits)
            self._advance(int(np.array(newest)[0]))
        self._position = tokens.size
        if self._matcher is None:
            return logits
        if self._plan is None and self._tokens_left <= self._check_at:
            logits = self._look_ahead(self._matcher, logits)
        if self._plan is not None and (step := self._position - self._plan_position) < len(self._plan):
            return _allow_only(logits, [self._plan[step]])
        return self._masked(self._matcher, logits)

    def _advance(self, token: int) -> None:
        self._tokens_left -= 1
        if self._matcher is not None:
            self._matcher.consume_token(token)
            if self._matcher.is_error():
                self._fail(self._matcher)
            elif self._trigger is not None and self._matcher.is_stopped():
                self._matcher, self._plan = None, None  # the call is complete: free text follows
        elif self._trigger is not None:
            self._look_for_trigger(self._trigger, token)

    def _look_for_trigger(self, trigger: Trigger, token: int) -> None:
        self._tail = (self._tail + self._text(token))[-256:]
        at = self._tail.find(trigger.text)
        if at < 0:
            return
        rest, self._tail = self._tail[at + len(trigger.text) :], b""
        matcher = trigger.matcher.deep_copy()
        prefix = [*(self._tokenizer.tokenize_bytes(trigger.text, parse_special=True) if trigger.with_text else ())]
        prefix += self._tokenizer.tokenize_bytes(rest) if rest else []
        if matcher.try_consume_tokens(prefix) == len(prefix):
            self._matcher, self._check_at = matcher, self._tokens_left // 2
        if trigger.once:
            self._trigger = None

    def _text(self, token: int) -> bytes:
        text = self._tokenizer.decode_bytes([token])
        return text.lstrip(b"\xff") if self._tokenizer.is_special_token(token) else text

    def _look_ahead(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        """Compare the shortest completion with the tokens left; near the limit, return the logits of fitting tokens."""
        plan = self._completion.plan(matcher, self._tokens_left)
        spare = self._tokens_left - len(plan)
        if spare <= 2:
            self._plan, self._plan_position = plan, self._position
            return logits
        if not self._growth:  # most tokens that one choice can add: those of another such object, in a list for example
            start = matcher.deep_copy()
            start.reset()
            self._growth = len(self._completion.plan(start, MAX_COMPLETION_TOKENS))
        if spare > self._growth:
            self._check_at = self._tokens_left - max(1, (spare - self._growth) // 2)
            return logits
        self._check_at = self._tokens_left  # from here on at every call, also at a repeated one after a pause
        likely = np.argsort(np.array(self._masked(matcher, logits)[0].astype(mx.float32)))[: -CANDIDATE_TOKENS - 1 : -1]
        fitting = [int(token) for token in likely if self._completion.fits(matcher, int(token), self._tokens_left - 1)]
        return _allow_only(logits, fitting or plan[:1] or [self._completion.end])

    def _masked(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        mask = allowed_tokens(matcher, logits.shape[-1])
        if matcher.is_error():
            self._fail(matcher)
            return _allow_only(logits, [self._completion.end])
        return mx.where(mx.array(mask), logits, -mx.inf)

    def _fail(self, matcher: LLMatcher) -> None:
        # An exception here would end every request of the batch.
        self.failure = matcher.get_error().split("\n")[0]
        if self._trigger is not None:
            self._matcher, self._plan = None, None


def allowed_tokens(matcher: LLMatcher, size: int) -> np.ndarray:
    """Return which tokens may come next, bool ``[size]``."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    if len(bits) >= size:
        return bits[:size].astype(bool)
    return np.concatenate([bits, np.zeros(size - len(bits), np.uint8)]).astype(bool)


def _allow_only(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    keep = np.zeros(logits.shape[-1], bool)
    keep[list(tokens)] = True
    return mx.where(mx.array(keep), logits, -mx.inf)
