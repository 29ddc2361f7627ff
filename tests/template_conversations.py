"""Messages in the spellings of both protocols, and what must hold of the prompts that they become."""

from __future__ import annotations

from typing import Any

from kvlab.server.generation.prompt_cache import RenderedPrompt
from tests.template_kit import TemplateModel

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Does {name}.",
            "parameters": {"type": "object", "properties": {"handle": {"type": "string"}}, "required": ["handle"]},
        },
    }
    for name in ("findbadge", "finddesk")
]
ANSWER = [11, 12, 13, 11, 12]
"""Tokens of an answer, other than any template would write it."""
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eot|>", "</s>", "<end_of_turn>", "<|end|>", "<|call|>", "<|return|>",
    "<｜end▁of▁sentence｜>", "<|user|>", "<|system|>", "<|observation|>", "<|endoftext|>",
)  # fmt: skip
"""With one of these the text after an answer begins."""
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
IMAGE_URL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}


def text(*parts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in parts]


def called(
    identifier: str, arguments: Any = '{"handle": "@mira"}', name: str = "findbadge", **more: Any
) -> dict[str, Any]:
    call = {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def result(identifier: str, content: Any = "the code is 417") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identifier, "content": content}


def uses(identifier: str, arguments: Any = None, name: str = "findbadge", *before: Any) -> dict[str, Any]:
    """The same call in Anthropic's spelling."""
    block = {"type": "tool_use", "id": identifier, "name": name, "input": arguments or {"handle": "@mira"}}
    return {"role": "assistant", "content": [*before, block]}


def results(identifier: str, content: Any = "the code is 417", *after: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": identifier, "content": content}, *after]}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def shown(model: TemplateModel, prompt: RenderedPrompt) -> str:
    return model.loaded.decode(prompt.ids)


def assert_in_order(whole: str, *words: str) -> None:
    position = 0
    for word in words:
        found = whole.find(word, position)
        assert found >= 0, f"{word!r} is not in {whole[position:]!r}"
        position = found + len(word)


def answered(model: TemplateModel, prompt: RenderedPrompt, answer: dict[str, Any]) -> list[int]:
    """Remember an answer; the tokens that the next prompt must begin with."""
    model.prompts.remember(prompt, answer, ANSWER)
    return [*prompt.ids, *ANSWER]


def assert_grown(model: TemplateModel, known: list[int], later: RenderedPrompt, *words: str, without: str = "") -> None:
    """The later prompt is the tokens known, the end of the answer, and what is new."""
    assert later.ids[: len(known)] == known
    assert later.reused == len(known)
    rest = model.loaded.decode(later.ids[len(known) :]).lstrip()
    assert rest.startswith(ENDS), rest
    assert_in_order(rest, *words)
    for word in words:
        assert rest.count(word) == 1
    assert not without or without not in rest
