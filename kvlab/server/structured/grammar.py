"""Grammars on the decoder's logits: what cannot become valid is never sampled."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import llguidance.hf
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from kvlab.backends.device import is_cpu
from kvlab.models import LoadedModel
from kvlab.server.errors import ApiError
from kvlab.server.structured.shortest_completion import ShortestCompletion
from kvlab.server.structured.tool_formats import quoted

KEPT = 128
"""Compiled grammars that are remembered; an agent sends the same tools with every request."""
CANDIDATES = 4
"""Likeliest tokens that are tried for whether they leave room, where room is short."""
LONGEST = 512
"""Tokens of the longest way to the end that is looked for."""


class Grammars:
    """Compiled grammars of one model. Any thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._closer: ShortestCompletion | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def tokenizer(self) -> LLTokenizer:
        """llguidance's view of the model's vocabulary, built at first use (about a second for a large one)."""
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
        """Lark for exactly ``text``; tokens that grammars treat as special are referred to by number."""
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
        """A matcher at the grammar's start. Raises ApiError 400 when a schema in it cannot be a grammar."""
        with self._lock:
            matcher = self._compiled.get(lark)
            if matcher is None:
                matcher = LLMatcher(self.tokenizer, lark, log_level=0)
                if matcher.is_error():
                    why = matcher.get_error().split("<state>")[0].split("<grammar>")[0].strip()
                    raise ApiError(400, f"this schema cannot be enforced: {' '.join(why.split())[:400]}")
                self._compiled[lark] = matcher
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(lark)
            return matcher.deep_copy()

    def constraint(
        self, *, max_tokens: int, matcher: LLMatcher | None = None, trigger: Trigger | None = None
    ) -> Constraint:
        """A logits processor: under ``matcher`` from the first token, or under the trigger's once it is generated."""
        if self._closer is None:
            self._closer = ShortestCompletion(self.tokenizer, self._loaded.vocab_size, self._loaded.eos)
        return Constraint(self.tokenizer, self._closer, max_tokens, matcher, trigger)


class Trigger:
    """A text that puts a grammar in force when the model writes it; the grammar begins with that text."""

    def __init__(self, text: str, matcher: LLMatcher, *, once: bool = False, with_text: bool = True) -> None:
        self.text, self.matcher, self.once, self.with_text = text.encode(), matcher, once, with_text


class Constraint:
    """A logits processor for one sequence. Decoder thread only.

    mlx-lm calls processors with the tokens so far while the newest of them is still being computed. On a GPU the
    model's forward pass is set off first, so that waiting for that token and computing the mask happen beside it. A
    request that was paused comes back with the tokens of its last call once more.

    Close to ``max_tokens`` only tokens that leave room for a complete text are let through, and at last the shortest
    way to one is taken, so that length does not cut JSON apart.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer,
        closer: ShortestCompletion,
        max_tokens: int,
        matcher: LLMatcher | None,
        trigger: Trigger | None,
    ) -> None:
        self._tokenizer, self._closer = tokenizer, closer
        self._left = max_tokens
        self._matcher, self._trigger = matcher, trigger
        self._tail = b""
        self._place = 0
        self._plan: list[int] | None = None
        self._planned_at = 0
        self._check_at = max_tokens // 2
        self._jump = 0
        self._on_cpu = is_cpu()
        self.failure = ""

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if 0 < self._place < tokens.size:
            newest = tokens[-1:]
            mx.async_eval(newest)  # before the forward pass in the queue: it is ready when the last step is
            if not self._on_cpu:  # which would compute all of it here and now, and the rest apart
                mx.async_eval(logits)
            self._advance(int(np.array(newest)[0]))
        self._place = tokens.size
        if self._matcher is None:
            return logits
        if self._plan is None and self._left <= self._check_at:
            logits = self._look_ahead(self._matcher, logits)
        if self._plan is not None and (step := self._place - self._planned_at) < len(self._plan):
            return _only(logits, [self._plan[step]])
        return self._masked(self._matcher, logits)

    def _advance(self, token: int) -> None:
        self._left -= 1
        if self._matcher is not None:
            self._matcher.consume_token(token)
            if self._matcher.is_error():
                self._fail(self._matcher)
            elif self._trigger is not None and self._matcher.is_stopped():
                self._matcher, self._plan = None, None  # the call is complete: free text again
        elif self._trigger is not None:
            self._watch(self._trigger, token)

    def _watch(self, trigger: Trigger, token: int) -> None:
        self._tail = (self._tail + self._text(token))[-256:]
        at = self._tail.find(trigger.text)
        if at < 0:
            return
        rest, self._tail = self._tail[at + len(trigger.text) :], b""
        matcher = trigger.matcher.deep_copy()
        said = [*(self._tokenizer.tokenize_bytes(trigger.text, parse_special=True) if trigger.with_text else ())]
        said += self._tokenizer.tokenize_bytes(rest) if rest else []
        if matcher.try_consume_tokens(said) == len(said):
            self._matcher, self._check_at = matcher, self._left // 2
        if trigger.once:
            self._trigger = None

    def _text(self, token: int) -> bytes:
        text = self._tokenizer.decode_bytes([token])
        return text.lstrip(b"\xff") if self._tokenizer.is_special_token(token) else text

    def _look_ahead(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        """Compare the shortest way to the end with the room left; the logits, narrowed where room is short."""
        plan = self._closer.plan(matcher, self._left)
        spare = self._left - len(plan)
        if spare <= 2:
            self._plan, self._planned_at = plan, self._place
            return logits
        if not self._jump:  # what one token can add: at most another such object, in a list say
            start = matcher.deep_copy()
            start.reset()
            self._jump = len(self._closer.plan(start, LONGEST))
        if spare > self._jump:
            self._check_at = self._left - max(1, (spare - self._jump) // 2)
            return logits
        self._check_at = self._left  # from here on every time, and once more where a pause asks again
        likely = np.argsort(np.array(self._masked(matcher, logits)[0].astype(mx.float32)))[: -CANDIDATES - 1 : -1]
        fitting = [int(token) for token in likely if self._closer.fits(matcher, int(token), self._left - 1)]
        return _only(logits, fitting or plan[:1] or [self._closer.end])

    def _masked(self, matcher: LLMatcher, logits: mx.array) -> mx.array:
        mask = allowed(matcher, logits.shape[-1])
        if matcher.is_error():
            self._fail(matcher)
            return _only(logits, [self._closer.end])
        return mx.where(mx.array(mask), logits, -mx.inf)

    def _fail(self, matcher: LLMatcher) -> None:
        # Raising here would end every request of the batch.
        self.failure = matcher.get_error().split("\n")[0]
        if self._trigger is not None:
            self._matcher, self._plan = None, None


def allowed(matcher: LLMatcher, size: int) -> np.ndarray:
    """Which tokens may come next, bool ``[size]``."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    if len(bits) >= size:
        return bits[:size].astype(bool)
    return np.concatenate([bits, np.zeros(size - len(bits), np.uint8)]).astype(bool)


def _only(logits: mx.array, tokens: Sequence[int]) -> mx.array:
    keep = np.zeros(logits.shape[-1], bool)
    keep[list(tokens)] = True
    return mx.where(mx.array(keep), logits, -mx.inf)
