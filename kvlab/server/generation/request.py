"""A generation request, independent of the protocol it came by, and the events of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvlab.decoder import Completion
from kvlab.server.generation.prompt_cache import RenderedPrompt
from kvlab.server.generation.sampling import Sampling, TokenLogprob
from kvlab.server.structured.request_grammar import RequestGrammar
from kvlab.server.structured.tool_formats import ToolCall


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to answer it, rendered and checked.

    Args:
        prompt: the rendered prompt.
        max_tokens: most tokens of each answer.
        n: number of answers.
        stop: strings that end an answer.
        tool_choice: ``none``, ``auto``, ``required``; a named tool is ``required`` with one tool left in ``tools``.
        tools: the tools that may be called.
        parallel_calls: an answer may hold several calls.
        schema: the JSON schema of the answer, None for free text.
        logprobs: number of likeliest tokens to report, None for no report.
        plain: a plain completion: no calls, no thinking, and its answer is not remembered.
        first_index: the index of its first choice in the response.
        grammar: the compiled grammar of its answers; None before it is compiled, and for free text.
    """

    prompt: RenderedPrompt
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop: tuple[str, ...] = ()
    tool_choice: str = "none"
    tools: tuple[Mapping[str, Any], ...] = ()
    parallel_calls: bool = True
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    plain: bool = False
    first_index: int = 0
    grammar: RequestGrammar | None = None


@dataclass(frozen=True)
class TextDelta:
    """More text of choice ``index``; with the log-probabilities of its tokens where the request wants them."""

    index: int
    text: str
    reasoning: bool = False
    tokens: tuple[tuple[int, TokenLogprob], ...] = ()


@dataclass(frozen=True)
class ToolCallEvent:
    """A complete tool call of choice ``index``; ``number`` counts the calls of the choice."""

    index: int
    number: int
    id: str
    call: ToolCall


@dataclass(frozen=True)
class Heartbeat:
    """No token came for one heartbeat interval."""


@dataclass(frozen=True)
class ChoiceEnd:
    """Choice ``index`` is complete. ``reason``: ``stop``, ``length`` or ``tool_calls``; ``tokens``: their number."""

    index: int
    reason: str
    completion: Completion
    tokens: int
    stopped: str | None = None
    """The stop string that ended it."""
    diverged_message: int | None = None
    """The index of the message at which the prompt parted from KV of an earlier prompt."""
    unenforced: tuple[Mapping[str, str], ...] = ()
    """What the grammar left open of the client's schemas, and what of it the answer violates."""


ChoiceEvent = TextDelta | ToolCallEvent | Heartbeat | ChoiceEnd
