"""The chat template of one model: renders canonical conversations as text."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.models import LoadedModel
from kvlab.models.templates import TemplateDialect, TemplateMessage, Tools, adapt, probe
from kvlab.server.errors import ApiError
from kvlab.server.generation.conversation import canonical

THINKING_OPTION = "enable_thinking"
HISTORY = canonical(
    [
        {"role": "system", "content": "system"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "answer", "reasoning_content": "thinking"},
        {"role": "user", "content": "user"},
    ]
)


class ChatTemplate:
    """Renders conversations with the template of ``loaded``, in the form that this template accepts."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._ends = [loaded.decode([token]) for token in sorted(loaded.eos)]
        # Letters and digits only: templates escape nothing in it. Secret: no client can send it.
        secret = secrets.token_hex(16)
        self._cut, self._mark = f"cut{secret}", f"end{secret}"

    @functools.cached_property
    def dialect(self) -> TemplateDialect:
        """What the template accepts; found out by rendering, at the first use."""
        return probe(lambda messages, tools: self._apply(messages, tools, {}, generation=False))

    def text(
        self, messages: Sequence[TemplateMessage], tools: Tools, options: Mapping[str, Any], generation: bool = True
    ) -> str:
        """Render a canonical conversation. Raises ApiError 400 where the template refuses it.

        With ``generation`` the text ends where an answer begins, or within the last message if that is an answer.
        """
        if not generation or messages[-1]["role"] != "assistant":
            return self._render(messages, tools, options, generation)
        cut = [*messages[:-1], _with_text(messages[-1], self._cut)]
        rendered = self._render(cut, tools, options, False)
        if rendered.count(self._cut) != 1:
            raise ApiError(
                400, f"the chat template of {self._loaded.name} cannot continue an answer: end with a user message",
                param="messages",
            )  # fmt: skip
        return rendered[: rendered.index(self._cut)]

    def text_after(
        self, text: str, messages: Sequence[TemplateMessage], index: int, tools: Tools, options: Mapping[str, Any]
    ) -> str | None:
        """Return the part of ``text``, the rendered conversation, from the end of answer ``index`` on.

        The end is found by rendering the conversation with a mark at the end of that answer: templates may render
        earlier answers in another form than the last, so that lengths cannot be compared. None where that fails.
        """
        answer = messages[index]
        calls = answer.get("tool_calls", ())
        if len(calls) > 1 and not self.dialect.parallel_calls:  # the results stand between the calls
            return None
        try:
            marked = self.text(self._marked(messages, index), tools, options)
        except ApiError:
            return None
        rest = marked[marked.rfind(self._mark) + len(self._mark) :] if self._mark in marked else ""
        if calls:  # the mark is within the call, which the tokens of the answer have closed already
            ends = [at for end in self._ends if (at := rest.find(end)) >= 0]
            rest = rest[min(ends) :] if ends else ""
        return rest if rest and text.endswith(rest) else None

    def history_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that change how a conversation is rendered, beyond the beginning of the next answer."""
        return {k: v for k, v in options.items() if k != THINKING_OPTION or self._thinking_changes_history}

    @functools.cached_property
    def _thinking_changes_history(self) -> bool:
        rendered = set()
        for options in ({}, {THINKING_OPTION: True}, {THINKING_OPTION: False}):
            try:
                rendered.add(self._render(HISTORY, (), options, generation=False))
            except ApiError:
                return True
        return len(rendered) > 1

    def count_ends(self, text: str) -> int:
        """Count the tokens in ``text`` that end an answer."""
        return sum(text.count(end) for end in self._ends)

    def _marked(self, messages: Sequence[TemplateMessage], index: int) -> list[TemplateMessage]:
        """Return the conversation with the mark at the end of message ``index``."""
        made = list(messages)
        message = dict(made[index])
        if calls := message.get("tool_calls"):
            function = calls[-1]["function"]
            arguments = function["arguments"]
            if isinstance(arguments, dict):
                last = {**calls[-1], "function": {**function, "arguments": {**arguments, self._mark: self._mark}}}
                message["tool_calls"] = [*calls[:-1], last]
        else:
            message = _with_text(message, self._mark)
        made[index] = message
        return made

    def _render(
        self, messages: Sequence[TemplateMessage], tools: Tools, options: Mapping[str, Any], generation: bool
    ) -> str:
        if not self._loaded.tokenizer.has_chat_template:
            raise ApiError(400, f"{self._loaded.name} has no chat template: use /v1/completions")
        adapted, shown = adapt(messages, tools, self.dialect)
        try:
            return self._apply(adapted, shown, options, generation=generation)
        except Exception as error:  # templates are programs: an input can raise jinja errors, KeyErrors and TypeErrors
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ApiError(
                400, f"the chat template of {self._loaded.name} refuses this conversation: {line}", param="messages"
            ) from error

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], tools: Tools, options: Mapping[str, Any], *, generation: bool
    ) -> str:
        made: str = self._loaded.tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=generation, tokenize=False, **options
        )
        return made


def _with_text(message: TemplateMessage, text: str) -> TemplateMessage:
    return {**message, "content": message["content"] + text}
