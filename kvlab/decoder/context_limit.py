"""``ContextLimit``: what becomes of a prompt that is too long, and of a sequence that reaches the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvlab.counts import counted
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel

ERROR, STOP, SHIFT, TRUNCATE_MIDDLE = "error", "stop", "shift", "truncate-middle"
LONG_PROMPT = (ERROR, TRUNCATE_MIDDLE)
OVERFLOW = (STOP, ERROR, SHIFT)
WITH_KEEP = (SHIFT, TRUNCATE_MIDDLE)
MIN_MOVING_TOKENS = 4
"""Tokens of the context that are never kept, so that something can be dropped (as in llama.cpp's server)."""


class ContextError(KvlabError):
    """A prompt, or a prompt and its answer, beyond the context limit."""


@dataclass(frozen=True)
class OverflowRule:
    """``error``, ``stop``, ``shift:keep=4`` or ``truncate-middle:keep=4``, read from its text."""

    name: str
    keep: int = 0

    @classmethod
    def parse(cls, setting: str, text: str, known: Sequence[str]) -> OverflowRule:
        """Read a rule of the setting of this name. Raises KvlabError."""
        name, _, rest = text.partition(":")
        if name not in known:
            raise KvlabError(f"{setting}={text} is unknown; write one of {', '.join(known)}")
        key, _, value = rest.partition("=")
        if rest and (name not in WITH_KEEP or key != "keep" or not value.isdecimal()):
            takes = f"{name}:keep=4" if name in WITH_KEEP else name
            raise KvlabError(f"{setting}={text} cannot be read; write {takes}")
        return cls(name, int(value) if value else 0)


@dataclass(frozen=True)
class ContextLimit:
    """The limit of one decoder, in tokens of prompt and answer together.

    Args:
        context: the limit; None is no limit.
        long_prompt: ``error`` refuses a prompt that fills the context; ``truncate-middle`` drops its middle.
        overflow: ``stop`` ends the answer at the limit, ``error`` refuses a request that might reach it, ``shift``
            drops the oldest tokens behind those to keep, and goes on.
        bos: tokens that the tokenizer puts before every text, 0 or 1; rules keep them besides their own.
    """

    context: int | None
    long_prompt: OverflowRule
    overflow: OverflowRule
    bos: int = 0

    @property
    def shifts(self) -> bool:
        """Whether sequences go on beyond the limit."""
        return self.context is not None and self.overflow.name == SHIFT

    def cut(self, prompt: int) -> tuple[int, int]:
        """Return the span of a prompt of so many tokens that must be dropped, from and to, both 0 where it fits.

        Half of what is not kept stays free for the answer: of 512 tokens with 4 to keep, 258 stay.

        Raises:
            ContextError: it is too long, and the rule is ``error``.
        """
        if self.context is None or prompt < self.context:
            return 0, 0
        if self.long_prompt.name == ERROR:
            raise ContextError(
                f"the prompt has {counted(prompt, 'token')}, and the context is {self.context}: shorten it"
            )
        keep = self._kept(self.long_prompt)
        left = self.context - max((self.context - keep) // 2, 1)
        return keep, prompt - (left - keep)

    def answer(self, prompt: int, wanted: int) -> int:
        """Return how many tokens an answer behind ``prompt`` tokens may have, of those ``wanted``.

        Raises:
            ContextError: the answer might reach the limit, and the rule is ``error``.
        """
        if self.context is None or self.overflow.name == SHIFT:
            return wanted
        left = self.context - prompt
        if wanted > left and self.overflow.name == ERROR:
            raise ContextError(
                f"{prompt} prompt and {counted(wanted, 'answer token')} are more than the context of {self.context}: "
                f"ask for {left} or fewer"
            )
        return min(wanted, left)

    def most_live(self, prompt: int, answer: int) -> int:
        """Return how many tokens of an answer behind ``prompt`` tokens are live at a time."""
        return answer if self.context is None else min(answer, self.context - prompt)

    def shift(self, held: int) -> tuple[int, int] | None:
        """Return how many tokens a sequence of ``held`` keeps and then drops before its next one; None: it has room.

        With 512 tokens and 16 to keep, a sequence of 511 drops 247 of the other 495.
        """
        if not self.shifts or self.context is None or held + 1 < self.context:
            return None
        keep = self._kept(self.overflow)
        return keep, max(1, (held - keep) // 2)

    def _kept(self, rule: OverflowRule) -> int:
        return min(rule.keep + self.bos, (self.context or 0) - MIN_MOVING_TOKENS)


def leading_tokens(loaded: LoadedModel) -> int:
    """Return how many tokens the model's tokenizer puts before every text: 1 where it is a BOS, else 0."""
    tokenizer = loaded.tokenizer
    ids = list(tokenizer.encode("a"))
    return int(bool(ids) and getattr(tokenizer, "bos_token_id", None) is not None and ids[0] == tokenizer.bos_token_id)
