"""What a request asks of a model, whichever protocol it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvlab.decoder import Completion
from kvlab.server.generation.prompt_cache import RenderedPrompt
from kvlab.server.generation.sampling import Sampling, TokenLogprob
from kvlab.server.structured.tool_formats import Call


@dataclass(frozen=True)
class GenerationRequest:
    """One request, rendered and checked.

    Args:
        prompt: what the model gets.
        n: answers wanted.
        max_tokens: tokens of each.
        stop: strings that end an answer.
        call: ``none``, ``auto``, ``required``; a named tool is ``required`` with one tool left in ``tools``.
        tools: those that may be called now.
        many: several calls may follow each other.
        schema: the JSON schema that the answer must have, None for free text.
        logprobs: how many likely tokens to report, None for none.
        raw: a plain completion: no calls, no thinking, no memory of the answer.
        first: the index of its first choice in the response.
    """

    prompt: RenderedPrompt
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop: tuple[str, ...] = ()
    call: str = "none"
    tools: tuple[Mapping[str, Any], ...] = ()
    many: bool = True
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    raw: bool = False
    first: int = 0


@dataclass(frozen=True)
class Text:
    """More text of choice ``index``; with its tokens' log-probabilities where asked for."""

    index: int
    text: str
    reasoning: bool = False
    tokens: tuple[tuple[int, TokenLogprob], ...] = ()


@dataclass(frozen=True)
class Called:
    """A complete tool call of choice ``index``; ``number`` counts its calls."""

    index: int
    number: int
    id: str
    call: Call


@dataclass(frozen=True)
class Heartbeat:
    """Nothing has happened for a while."""


@dataclass(frozen=True)
class Ended:
    """Choice ``index`` is complete. ``reason``: ``stop``, ``length`` or ``tool_calls``; ``tokens``: generated ones."""

    index: int
    reason: str
    completion: Completion
    tokens: int
    stopped: str | None = None
    message: int | None = None
    """Where the prompt's prefix broke, as a message index, when that is why tokens were computed anew."""


Event = Text | Called | Heartbeat | Ended
