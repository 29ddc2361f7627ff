"""Stable prompts: an earlier answer comes back as exactly the tokens that were generated."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvlab.errors import KvlabError
from kvlab.models import LoadedModel, for_template
from kvlab.server.errors import ApiError

Message = Mapping[str, Any]
MAX_ANSWERS = 4096
"""Most answers to remember; each takes a few bytes for each token of its conversation."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered conversation. ``ids`` are its tokens; ``reasoning``: it ends inside a thinking block."""

    ids: list[int]
    messages: tuple[Message, ...]
    tools: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    reasoning: bool = False
    reused: int = 0
    """Leading tokens that come from an earlier answer and were not rendered again."""


class PromptCache:
    """Renders conversations of one model, and remembers its answers. Thread-safe.

    Chat templates do not render every answer as it was generated: spacing in arguments differs, thinking is left out,
    text splits into other tokens. Each difference would end the common prefix. So an answer is found by the
    conversation that it ends, the tokens of prompt and answer are used again, and the template renders the text after.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._ends = [loaded.decode([token]) for token in sorted(loaded.eos)]
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, list[int]] = OrderedDict()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        options: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """Render the prompt of the next answer. Raises ApiError 400 when the template refuses the conversation."""
        options = dict(options or {})
        text = self.text(messages, tools, options)
        ids, reused = self._encode_after_answer(text, messages, tools, options)
        start = self._loaded.tokenizer.think_start if self._loaded.tokenizer.has_thinking else None
        reasoning = start is not None and text.rstrip().endswith(start)
        return RenderedPrompt(ids, tuple(messages), tuple(tools), options, reasoning, reused)

    def text(
        self, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any], generation: bool = True
    ) -> str:
        """Render a conversation as text. Raises ApiError 400."""
        tokenizer = self._loaded.tokenizer
        if not tokenizer.has_chat_template:
            raise ApiError(400, f"{self._loaded.name} has no chat template: use /v1/completions")
        try:
            made: str = tokenizer.apply_chat_template(
                [for_template(message) for message in messages],
                tools=list(tools) or None,
                add_generation_prompt=generation,
                tokenize=False,
                **options,
            )
        except Exception as error:  # templates are programs: an input can raise jinja errors, KeyErrors and TypeErrors
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ApiError(400, f"the chat template refuses this conversation: {line}", param="messages") from error
        return made

    def encode(self, text: str) -> list[int]:
        """Encode ``text`` as token ids. Raises ApiError 400 for invalid Unicode."""
        try:
            return self._loaded.encode(text)
        except (UnicodeError, TypeError, KvlabError) as error:
            raise ApiError(400, "the prompt holds characters that are no text, such as a lone surrogate") from error

    def remember(self, prompt: RenderedPrompt, answer: Message, ids: Sequence[int]) -> None:
        """Remember the tokens of a complete answer for the conversation's next turn."""
        key = self._keys([*prompt.messages, answer], prompt.tools, prompt.options)[-1]
        with self._lock:
            self._answers[key] = [*prompt.ids, *ids]
            self._answers.move_to_end(key)
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)

    def message_at(self, prompt: RenderedPrompt, token: int) -> int:
        """Return the index of the message that holds token number ``token`` of the prompt; tools belong to the first.

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
        return low

    def _reaches(self, prompt: RenderedPrompt, index: int, before: str) -> bool:
        """Whether the conversation up to message ``index`` is longer than ``before``."""
        try:
            text = self.text(prompt.messages[: index + 1], prompt.tools, prompt.options, generation=False)
        except ApiError:  # some templates refuse a part of a conversation
            return False
        ends = sum(text.count(end) for end in self._ends)
        if ends > index // 2:
            return ends > sum(before.count(end) for end in self._ends)
        return len(text) > len(before)

    def _encode_after_answer(
        self, text: str, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any]
    ) -> tuple[list[int], int]:
        answered = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        keys = self._keys(messages, tools, options) if answered else []
        for i in reversed(answered):
            with self._lock:
                known = self._answers.get(keys[i])
                if known is not None:
                    self._answers.move_to_end(keys[i])
            if known is None:
                continue
            rest = self._text_after(text, messages[: i + 1], tools, options)
            if rest is not None:
                return [*known, *self.encode(rest)], len(known)
        return self.encode(text), 0

    def _text_after(
        self, text: str, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any]
    ) -> str | None:
        """Return the text of the template from the end token of the last of ``messages`` on."""
        try:
            so_far = self.text(messages, tools, options, generation=False)
        except ApiError:
            return None
        at, end = max((so_far.rfind(end), end) for end in self._ends)
        if at < 0:
            return None
        # Templates may render earlier answers shorter than the last: end tokens are counted, lengths not compared.
        position = -1
        for _ in range(so_far.count(end)):
            position = text.find(end, position + 1)
            if position < 0:
                return None
        return text[position:]

    def _keys(self, messages: Sequence[Message], tools: Sequence[Message], options: Mapping[str, Any]) -> list[bytes]:
        """Return a hash for every prefix of the conversation; ids of calls, which no template shows, do not count."""
        digest = hashlib.sha256(json.dumps([list(tools), dict(options)], sort_keys=True, default=str).encode())
        keys = []
        for message in messages:
            digest.update(json.dumps(_key_parts(message), sort_keys=True, default=str).encode())
            keys.append(digest.digest())
        return keys


def _key_parts(message: Message) -> list[Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = str(arguments)
        calls.append([function.get("name"), arguments])
    return [message.get("role"), content or "", calls]
