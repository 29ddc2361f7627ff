"""Stable prompts: an earlier answer comes back as exactly the tokens that were generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.models.templates import TemplateMessage
from kvlab.server.errors import ApiError
from kvlab.server.generation.answer_memory import AnswerMemory, Known
from kvlab.server.generation.chat_template import ChatTemplate
from kvlab.server.generation.conversation import (
    Message,
    canonical,
    canonical_tools,
    canonical_with_places,
    key_parts,
    merged_answer,
)
from kvlab.server.generation.thinking import thinking_markers
from kvlab.server.limits import MAX_CHARS_PER_TOKEN

UNKNOWN_CONTEXT = 1 << 20
"""Tokens that a context is taken to have where none is known."""
MAX_RENDERINGS = 3
"""Answers whose end is looked for before the template's own rendering is taken: each costs a rendering."""
MIN_ROOM_SHARE = 8
"""One part in so many of the context is left for an answer before thinking that a template drops is dropped."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered conversation.

    Attributes:
        ids: its tokens.
        messages: the conversation in canonical form.
        tools: the tools that the template was given.
        options: what else the template was given.
        places: the index of each message in the conversation as the client sent it.
        tenant: the client that it belongs to.
        reasoning: it ends inside a thinking block.
        known: the answer whose tokens it begins with; None where the template rendered all of it.
    """

    ids: list[int]
    messages: tuple[TemplateMessage, ...]
    tools: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[int, ...] = ()
    tenant: str = ""
    reasoning: bool = False
    known: Known | None = None

    @property
    def reused(self) -> int:
        """Leading tokens that come from an earlier answer and were not rendered again."""
        return len(self.known.ids) if self.known is not None else 0

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last message."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"


class PromptCache:
    """Renders conversations of one model, and remembers its answers. Thread-safe. ``context`` is in tokens.

    Chat templates do not render every answer as it was generated: spacing in arguments differs, thinking is left out,
    text splits into other tokens. Each difference would end the common prefix. So an answer is found by the
    conversation that it ends, the tokens of prompt and answer are used again, and the template renders the text after.

    Args:
        loaded: the model.
        context: tokens that prompt and answer may have; None: no limit is known.
        answers: where the tokens of answers are remembered.
    """

    def __init__(self, loaded: LoadedModel, *, context: int | None = None, answers: AnswerMemory | None = None) -> None:
        self.answers = answers if answers is not None else AnswerMemory()
        self.template = ChatTemplate(loaded)
        self._loaded, self._context = loaded, context
        self._thinking = thinking_markers(loaded.tokenizer)
        self._max_chars = (context or UNKNOWN_CONTEXT) * MAX_CHARS_PER_TOKEN
        template = loaded.tokenizer.chat_template if loaded.tokenizer.has_chat_template else ""
        self._model = json.dumps([loaded.fingerprint, str(template)])

    @property
    def thinks(self) -> bool:
        """Whether the model has markers for its thinking."""
        return self._thinking is not None

    def render(
        self,
        messages: Iterable[Message],
        tools: Sequence[Message] = (),
        options: Mapping[str, Any] | None = None,
        *,
        tenant: str = "",
        max_tokens: int | None = None,
    ) -> RenderedPrompt:
        """Render the prompt of the next answer, which may have ``max_tokens``.

        Raises ApiError 400 for content that is no text, and where the template refuses the conversation.
        """
        options, tools = dict(options or {}), canonical_tools(tools)
        conversation, places = canonical_with_places(messages)
        conversation = _answerable(conversation)
        text = self.template.text(conversation, tools, options)
        ids, known = self._encode_after_answer(text, conversation, tools, options, tenant)
        if known is not None and not self._fits(len(ids), max_tokens):
            rendered = self.encode(text)
            if len(rendered) < len(ids):
                ids, known = rendered, None
        reasoning = self._thinking is not None and text.rstrip().endswith(self._thinking[0])
        return RenderedPrompt(ids, conversation, tools, options, places, tenant, reasoning, known)

    def text(
        self,
        messages: Iterable[Message],
        tools: Sequence[Message] = (),
        options: Mapping[str, Any] | None = None,
        generation: bool = True,
    ) -> str:
        """Render a conversation as text. Raises ApiError 400."""
        return self.template.text(canonical(messages), canonical_tools(tools), options or {}, generation)

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` as token ids. Raises ApiError 400 for invalid Unicode, and for what no context could hold."""
        if len(text) > self._max_chars:  # found out before the work of encoding it
            raise ApiError(
                400,
                f"the prompt has {len(text)} characters, and the model's context is {self._context} tokens: shorten it",
                code="context_length_exceeded",
                param="messages",
            )
        try:
            return self._loaded.encode(text)
        except (UnicodeError, TypeError, KvlabError) as error:
            raise ApiError(400, "the prompt holds characters that are no text, such as a lone surrogate") from error

    def remember(self, prompt: RenderedPrompt, answer: Message, ids: Sequence[int]) -> None:
        """Remember the tokens of a complete answer for the conversation's next turn."""
        messages = list(prompt.messages)
        last = merged_answer(messages.pop(), answer) if prompt.continues else answer
        key = self._keys(canonical([*messages, last]), prompt.tools, prompt.options, prompt.tenant)[-1]
        self.answers.add(key, prompt.tenant, [*prompt.ids, *ids], prompt.known)

    def message_at(self, prompt: RenderedPrompt, token: int) -> int:
        """Return the index of the client's message that holds token number ``token``; tools belong to the first.

        End tokens separate the messages, where the template writes one after each.
        """
        before = self._loaded.decode(prompt.ids[:token])
        low, high = 0, len(prompt.messages) - 1
        while low < high:
            middle = (low + high) // 2
            if self._reaches(prompt, middle, before):
                high = middle
            else:
                low = middle + 1
        return prompt.places[low] if prompt.places else low

    def _reaches(self, prompt: RenderedPrompt, index: int, before: str) -> bool:
        """Whether the conversation up to message ``index`` is longer than ``before``."""
        try:
            text = self.template.text(prompt.messages[: index + 1], prompt.tools, prompt.options, generation=False)
        except ApiError:  # some templates refuse a part of a conversation
            return False
        ends = self.template.count_ends(text)
        if ends > index // 2:
            return ends > self.template.count_ends(before)
        return len(text) > len(before)

    def _fits(self, prompt_tokens: int, max_tokens: int | None) -> bool:
        """Whether the context leaves room for an answer."""
        if self._context is None:
            return True
        room = self._context // MIN_ROOM_SHARE
        return prompt_tokens + min(room, max_tokens or room) <= self._context

    def _encode_after_answer(
        self,
        text: str,
        messages: Sequence[TemplateMessage],
        tools: Sequence[Message],
        options: Mapping[str, Any],
        tenant: str,
    ) -> tuple[list[int], Known | None]:
        answered = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        keys = self._keys(messages, tools, options, tenant) if answered else []
        tries = MAX_RENDERINGS
        for i in reversed(answered):
            ids = self.answers.find(keys[i], tenant)
            if ids is None:
                continue
            known = Known(keys[i], ids)
            if i == len(messages) - 1:  # the answer itself is continued
                return list(ids), known
            rest = self.template.text_after(text, messages, i, tools, options)
            if rest is not None:
                return [*ids, *self.encode(rest)], known
            tries -= 1
            if not tries:
                break
        return self.encode(text), None

    def _keys(
        self, messages: Sequence[TemplateMessage], tools: Sequence[Message], options: Mapping[str, Any], tenant: str
    ) -> list[bytes]:
        """Return a hash for every prefix of the conversation, of one tenant and one model."""
        given = [self._model, tenant, list(tools), self.template.history_options(options)]
        digest = hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode())
        keys = []
        for message in messages:
            digest.update(json.dumps(key_parts(message), sort_keys=True, default=str).encode())
            keys.append(digest.digest())
        return keys


def _answerable(messages: tuple[TemplateMessage, ...]) -> tuple[TemplateMessage, ...]:
    """Return the conversation without an empty answer at its end. Raises ApiError 400 where it cannot be answered."""
    while messages and messages[-1]["role"] == "assistant":
        last = messages[-1]
        if last.get("tool_calls"):
            raise ApiError(400, "the last message calls tools: send their results after it", param="messages")
        if last["content"].strip():
            return messages
        if last.get("reasoning_content"):
            raise ApiError(
                400, "the last message has thinking and no text: leave it out, or give the text to continue",
                param="messages",
            )  # fmt: skip
        messages = messages[:-1]
    if not messages:
        raise ApiError(400, "there is nothing to answer: send a user message", param="messages")
    return messages
