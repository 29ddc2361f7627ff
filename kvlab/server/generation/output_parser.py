"""From tokens to content, reasoning and tool calls, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlx_lm.generate import TextStateMachine

CONTENT, REASONING, TOOL = "content", "reasoning", "tool"


class OutputPiece(NamedTuple):
    """Text of one kind. ``ended``: the tool call that it belongs to is complete."""

    kind: str
    text: str
    ended: bool = False


class OutputParser:
    """Parses one answer token by token, without the markers of thinking and of calls.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        call: the texts around a tool call; None for no calls. An empty end stands for the end of the answer.
        stop: strings that end the content; they are not part of it.
        reasoning: the prompt has already opened a thinking block.
    """

    def __init__(
        self, tokenizer: Any, *, call: tuple[str, str] | None, stop: Sequence[str] = (), reasoning: bool = False
    ) -> None:
        edges: dict[str, list[tuple[str, str | None]]] = {CONTENT: [(word, None) for word in stop]}
        if tokenizer.has_thinking:
            edges[CONTENT].append((tokenizer.think_start, REASONING))
            edges[REASONING] = [(tokenizer.think_end, CONTENT)]
        if call:
            for state in list(edges):
                edges[state].append((call[0], TOOL))
            edges[TOOL] = [(call[1], CONTENT)] if call[1] else []
        self.stopped: str | None = None
        self._stop = list(stop)
        self._detokenizer = tokenizer.detokenizer
        first = REASONING if reasoning and REASONING in edges else CONTENT
        self._machine = TextStateMachine(edges if any(edges.values()) else None)
        self._state = self._machine.make_state(first)
        self._held_whitespace = ""  # sent when text follows; before a marker it is dropped
        self._strips_whitespace = bool(call) or tokenizer.has_thinking
        self._has_content = False
        self._raw = ""

    def add(self, token: int) -> list[OutputPiece]:
        """Return the pieces that this token completes; none once :attr:`stopped` is set."""
        self._detokenizer.add_token(token)
        return self._parse(self._detokenizer.last_segment)

    def finish(self) -> list[OutputPiece]:
        """Return the pieces that were held back; an incomplete call is not ``ended``."""
        if self.stopped is not None:
            return []
        self._detokenizer.finalize()
        pieces = self._parse(self._detokenizer.last_segment)
        if self.stopped is None:
            self._state, rest, state = TextStateMachine.flush(self._state)
            pieces += self._piece(state, rest)
        return pieces

    def _parse(self, text: str) -> list[OutputPiece]:
        if not text or self.stopped is not None:
            return []
        self._raw += text
        before = self._state[0]
        self._state, segments = TextStateMachine.split(self._state, text)
        pieces: list[OutputPiece] = []
        for i, (state, part) in enumerate(segments):
            if state is None:
                self.stopped = self._which_stop(self._state[3])
                break
            pieces += self._piece(state, part, ended=state == TOOL and i + 1 < len(segments))
            if i > 0 and state == REASONING != before:
                self._held_whitespace = ""
        return pieces

    def _piece(self, kind: str, text: str, ended: bool = False) -> list[OutputPiece]:
        if kind == TOOL:
            self._held_whitespace, self._has_content = "", False
            return [OutputPiece(TOOL, text, ended)]
        if not text:
            return []
        if kind == REASONING:
            self._has_content = False
            return [OutputPiece(REASONING, text)]
        if self._strips_whitespace:  # templates put line breaks around calls and after thinking
            text = self._held_whitespace + text if self._has_content else text.lstrip()
            kept = text.rstrip()
            text, self._held_whitespace = kept, text[len(kept) :]
            self._has_content = self._has_content or bool(kept)
        return [OutputPiece(CONTENT, text)] if text else []

    def _which_stop(self, rest: str) -> str:
        seen = self._raw[: len(self._raw) - len(rest)]
        return next((word for word in self._stop if seen.endswith(word)), self._stop[0])
