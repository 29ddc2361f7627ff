"""From the requests of a workload to the token ids of prompts, and from answers to text, under any chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.errors import ModelError, RunError
from kvlab.experiments.conversations import Turn
from kvlab.models import LoadedModel
from kvlab.models.loaded import first_line
from kvlab.models.templates import CallNumbers, TemplateDialect, TemplateMessage, Tools, adapt, call_text, probe
from kvlab.workloads import Message, WorkloadRequest
from kvlab.workloads.base import text_of


class Prompts:
    """The prompts of a workload's requests under one model, in the form that its chat template accepts.

    Tools, calls and results that a template does not show become text, and messages that it refuses are merged or
    moved: see :func:`kvlab.models.templates.adapt`. A template that shows everything gets the requests as they are.

    Attributes:
        dialect: what the template accepts.
        offers_tools: whether any request has tools, calls or results.
    """

    def __init__(self, model: LoadedModel, requests: Sequence[WorkloadRequest]) -> None:
        self.model = model
        self.offers_tools = any(one.tools or _has_calls(one.messages) for one in requests)
        self.dialect = probe(self._apply) if model.tokenizer.has_chat_template else TemplateDialect()

    def turn(self, request: WorkloadRequest) -> Turn:
        """Render a request. Raises ModelError where there is no template, or where it refuses every form."""
        prompt = self.ids(request)
        seen = tokens_before(self.model, prompt, request.unseen) if request.unseen else None
        last = str(request.messages[-1]["role"])
        return Turn(request.conversation, request.turn, prompt, request.max_tokens, seen, last)

    def ids(self, request: WorkloadRequest, answer: Message | None = None) -> tuple[int, ...]:
        """Render the prompt of a request, or, with an ``answer``, the conversation that ends with it."""
        messages = [*request.messages, answer] if answer else request.messages
        adapted, tools = adapt(_numbered(messages), request.tools, self.dialect)
        return self._rendered(adapted, tools, generation=answer is None)

    def answer(self, tokens: Sequence[int]) -> str:
        """Return an answer as text; a single call in the model's own form is written in the form that is graded."""
        text = self.model.decode(tokens)
        return _call_as_text(self.model.tokenizer, text) if self.offers_tools else text

    @property
    def facts(self) -> dict[str, str]:
        """What provenance says of prompts whose tools or calls became text; empty where none did."""
        if not self.offers_tools or (self.dialect.shows_tools and self.dialect.shows_calls):
            return {}
        how = "described in the system prompt" if not self.dialect.shows_tools else "shown by it"
        calls = "read from text" if not self.dialect.shows_calls else "in its own form"
        return {"tools": f"{how}, calls {calls}: the chat template does not show both"}

    def _rendered(self, messages: Sequence[TemplateMessage], tools: Tools, *, generation: bool) -> tuple[int, ...]:
        if not self.model.tokenizer.has_chat_template:
            raise ModelError(f"model {self.model.name} has no chat template; use one that has")
        try:
            return tuple(self.model.encode(self._apply(messages, tools, generation=generation)))
        except Exception as error:  # templates are programs: jinja errors, KeyErrors and more come from the input
            why = first_line(error)
            raise ModelError(f"the chat template of {self.model.name} refuses this conversation: {why}") from error

    def _apply(self, messages: Sequence[Mapping[str, Any]], tools: Tools, *, generation: bool = False) -> str:
        made: str = self.model.tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=generation, tokenize=False
        )
        return made


def tokens_before(model: LoadedModel, prompt: Sequence[int], text: str) -> int:
    """Count the tokens of `prompt` in front of the last place where `text` is in it; none of them holds any of it.

    Raises RunError where the chat template has changed the text, or where nothing is in front of it.
    """
    for count in range(len(prompt) - 1, 0, -1):
        if text in model.decode(prompt[count:]):
            return count
    raise RunError(f"the chat template of {model.name} does not show this part of a message as it is: {text[:60]!r}")


def _has_calls(messages: Sequence[Message]) -> bool:
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def _numbered(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Return messages with content as text, and calls with numbers and arguments as mappings."""
    calls, made = CallNumbers(), []
    for message in messages:
        one = {k: v for k, v in message.items() if k != "tool_calls"}
        one["role"] = {"developer": "system"}.get(message["role"], message["role"])
        one["content"] = text_of(one)
        if one["role"] == "assistant":
            one |= calls.of_answer(message)
        elif one["role"] == "tool":
            one |= calls.of_result(message)
        made.append(one)
    return made


def _call_as_text(tokenizer: Any, text: str) -> str:
    """Return the only call of a text in the form of `call_text`, where mlx-lm knows the model's own form of it."""
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end
    if not start or not text.lstrip().startswith(start):
        return text
    body, _, rest = text.lstrip()[len(start) :].partition(end) if end else (text.lstrip()[len(start) :], "", "")
    if rest.strip():
        return text
    try:
        found = tokenizer.tool_parser(body, None)
    except Exception:  # noqa: BLE001 - what a model writes may break its parser in any way, and is then no call
        return text
    calls = found if isinstance(found, list) else [found]
    if len(calls) != 1 or not isinstance(calls[0], dict) or not isinstance(calls[0].get("name"), str):
        return text
    arguments = calls[0].get("arguments")
    return call_text(calls[0]["name"], json.dumps(arguments) if not isinstance(arguments, str) else arguments)
