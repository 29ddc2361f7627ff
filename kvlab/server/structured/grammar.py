"""Compiled grammars of one model, kept for the next requests."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance.hf
from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits

from kvlab.models import LoadedModel
from kvlab.server.errors import ApiError
from kvlab.server.structured.constraint import Constraint, Trigger, Vocabulary
from kvlab.server.structured.shortest_completion import Hints, ShortestCompletion
from kvlab.server.structured.tool_formats import quoted
from kvlab.server.structured.trial import MAX_MASK_CPU_S, PARSER_LIMITS

__all__ = ["CompiledGrammar", "Grammars", "Trigger"]

MAX_GRAMMAR_CACHE_BYTES = 128 << 20
"""Kept for the next requests: an agent sends the same tools with each of them."""
BASE_BYTES = 100_000
BYTES_A_CHARACTER = 64
"""Memory of a compiled grammar, from the growth of the process over some thousand grammars."""
MAX_COMPLETION_TOKENS = 4096
"""Tokens of the longest completion that is looked for."""
MAX_PLAN_CPU_S = 2.0
MAX_ENDINGS, MAX_ENDING_CHARACTERS = 64, 100
COMPILER_STACK_BYTES = 64 << 20
"""llguidance follows nesting and references on its stack; a thread's usual one holds about 500 of them."""


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar at its start, and what is known of the texts that it allows.

    Args:
        matcher: the matcher at the start; copy it before use.
        shortest: tokens of a short complete text; cut after :data:`MAX_COMPLETION_TOKENS`.
        growth: most tokens that one choice adds to the shortest completion.
        hints: what helps to complete its texts.
        nbytes: an estimate of its memory.
    """

    matcher: LLMatcher
    shortest: tuple[int, ...]
    growth: int
    hints: Hints
    nbytes: int

    def deep_copy(self) -> LLMatcher:
        """Return a matcher at the grammar's start."""
        return self.matcher.deep_copy()


class Grammars:
    """Compiles and keeps the grammars of one model. Thread-safe; a compilation holds up no other.

    Args:
        loaded: the model, for its tokenizer.
        max_bytes: memory of the grammars that are kept.
        mask_seconds: CPU time that one token may take, on average over the shortest text.
    """

    def __init__(
        self, loaded: LoadedModel, *, max_bytes: int = MAX_GRAMMAR_CACHE_BYTES, mask_seconds: float = MAX_MASK_CPU_S
    ) -> None:
        self._loaded = loaded
        self.max_bytes, self._mask_seconds = max_bytes, mask_seconds
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory of the grammars that are kept, an estimate."""
        with self._lock:
            return sum(grammar.nbytes for grammar in self._compiled.values())

    def __len__(self) -> int:
        return len(self._compiled)

    @property
    def tokenizer(self) -> LLTokenizer:
        """llguidance's copy of the vocabulary, built at first use (about a second for a large one)."""
        with self._building:
            if self._tokenizer is None:
                try:
                    self._tokenizer = llguidance.hf.from_tokenizer(
                        self._loaded.tokenizer._tokenizer,
                        n_vocab=self._loaded.vocab_size,
                        eos_token=sorted(self._loaded.eos),
                    )
                except ValueError as error:
                    why = f"{self._loaded.name} has a tokenizer without grammar support: {error}"
                    raise ApiError(400, why) from error
            return self._tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """What is known of every token, built at first use."""
        tokenizer = self.tokenizer
        with self._building:
            if self._vocabulary is None:
                completion = ShortestCompletion(tokenizer, self._loaded.vocab_size, self._loaded.eos)
                self._vocabulary = Vocabulary(tokenizer, completion)
            return self._vocabulary

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

    def compile(
        self,
        lark: str,
        *,
        growth: int = 0,
        endings: Sequence[str] = (),
        multiples: bool = False,
        what: str = "this schema",
    ) -> CompiledGrammar:
        """Return the compiled grammar, a kept one where there is one.

        Args:
            lark: the grammar. Its schemas must be within the limits of :mod:`schema_limits`.
            growth: most tokens that one choice adds to the shortest completion; 0 takes those of the shortest text.
            endings: texts whose ends may complete a string under a pattern or format.
            multiples: some of its numbers are multiples.
            what: whose schema it is, for messages.

        Raises:
            ApiError: 400, which names ``what``, when it has no matcher, or one that takes too long.
        """
        with self._lock:
            if (found := self._compiled.get(lark)) is not None:
                self._compiled.move_to_end(lark)
                return found
        vocabulary = self.vocabulary
        made: CompiledGrammar = _on_large_stack(
            lambda: self._compile(vocabulary, lark, growth, tuple(endings), multiples, what)
        )
        with self._lock:
            self._compiled[lark] = made
            while len(self._compiled) > 1 and sum(g.nbytes for g in self._compiled.values()) > self.max_bytes:
                self._compiled.popitem(last=False)
        return made

    def _compile(
        self, vocabulary: Vocabulary, lark: str, growth: int, endings: tuple[str, ...], multiples: bool, what: str
    ) -> CompiledGrammar:
        matcher = LLMatcher(self.tokenizer, lark, log_level=0, limits=LLParserLimits(**PARSER_LIMITS))
        if matcher.is_error():
            why = matcher.get_error().split("\n")[0]
            why = why.partition("failed to compile JSON schema: ")[2] or why
            raise ApiError(400, f"{what} cannot be enforced: {why[:200]}")
        completion = vocabulary.completion
        began = time.thread_time()
        texts = [text[:MAX_ENDING_CHARACTERS] for text in endings[:MAX_ENDINGS]]
        hints = completion.hints(lark, texts, multiples=multiples)
        shortest: list[int] = completion.plan(matcher, 1, hints)
        if time.thread_time() - began < self._mask_seconds:
            shortest = completion.plan(matcher, MAX_COMPLETION_TOKENS, hints)
        if time.thread_time() - began > max(MAX_PLAN_CPU_S, self._mask_seconds * len(shortest)):
            raise ApiError(400, f"{what} cannot be enforced: each token takes too long; send a simpler one")
        return CompiledGrammar(
            matcher, tuple(shortest), growth or len(shortest) + 16, hints, BASE_BYTES + BYTES_A_CHARACTER * len(lark)
        )

    def constraint(
        self, *, max_tokens: int, matcher: CompiledGrammar | None = None, trigger: Trigger | None = None
    ) -> Constraint:
        """Make a logits processor that enforces ``matcher`` from the first token, or a trigger's once it is met."""
        return Constraint(self.vocabulary, max_tokens, matcher, trigger)


def _on_large_stack(work: Callable[[], Any]) -> Any:
    """Call ``work`` on a thread with a large stack; return its result or raise its error."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, work()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            outcome.extend((False, error))

    usual = threading.stack_size(COMPILER_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="kvlab-grammar")
        thread.start()
    finally:
        threading.stack_size(usual)
    thread.join()
    if not outcome[0]:
        raise outcome[1]
    return outcome[1]
