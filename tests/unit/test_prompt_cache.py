"""Remembered answers in prompts: what their keys cover, what they cost, and when the template's rendering is taken."""

from __future__ import annotations

from typing import Any

import pytest

from kvlab.models import LoadedModel
from kvlab.server.generation.answer_memory import AnswerMemory
from kvlab.server.generation.prompt_cache import MAX_RENDERINGS, PromptCache

ANSWER = [11, 12, 13]
TOOL = {"type": "function", "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}}


def chat(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def told(prompts: PromptCache, turns: int, **options: Any) -> list[dict[str, Any]]:
    """A conversation whose answers are all remembered; it ends with a question."""
    messages = chat("question 0")
    for turn in range(turns):
        prompt = prompts.render(messages, **options)
        prompts.remember(prompt, {"role": "assistant", "content": f"answer {turn}"}, ANSWER)
        messages += [{"role": "assistant", "content": f"answer {turn}"}, *chat(f"question {turn + 1}")]
    return messages


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "b"},
        {"tools": [TOOL]},
        {"options": {"reasoning_effort": "high"}},
        {"tools": [TOOL], "tenant": "a"},
    ],
    ids=["tenant", "tools", "options", "tools of the tenant"],
)
def test_the_key_covers_all_that_the_prompt_was_made_of(bundled: LoadedModel, other: dict[str, Any]) -> None:
    prompts = PromptCache(bundled)
    messages = told(prompts, 2, tenant="a")
    assert prompts.render(messages, tenant="a").reused > 0
    assert prompts.render(messages, **other).reused == 0


@pytest.mark.parametrize("place", range(4))
def test_a_changed_message_is_never_answered_with_older_tokens(bundled: LoadedModel, place: int) -> None:
    """Only what was remembered of the conversation before the change is used."""
    prompts = PromptCache(bundled)
    messages = told(prompts, 2)
    messages[place] = messages[place] | {"content": "changed"}
    prompt = prompts.render(messages)
    assert "changed" in bundled.decode(prompt.ids)
    assert (prompt.reused > 0) == (place > 1)


def test_another_model_or_template_finds_nothing(bundled: LoadedModel, qwen3: LoadedModel) -> None:
    answers = AnswerMemory()
    messages = told(PromptCache(bundled, answers=answers), 2)
    assert PromptCache(bundled, answers=answers).render(messages).reused > 0
    assert PromptCache(qwen3, answers=answers).render(messages).reused == 0


def test_only_some_ends_are_looked_for(bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template in which no answer's end is found: a long conversation costs a few renderings, not one an answer."""
    prompts = PromptCache(bundled)
    messages = told(prompts, 20)
    asked: list[int] = []
    monkeypatch.setattr(prompts.template, "text_after", lambda text, messages, index, *_: asked.append(index))
    prompt = prompts.render(messages)
    assert len(asked) == MAX_RENDERINGS
    assert prompt.reused == 0
    assert prompt.ids == PromptCache(bundled).render(messages).ids


@pytest.mark.parametrize("context", [400, 1000, 4000])
def test_remembered_tokens_never_cost_the_place_of_an_answer(bundled: LoadedModel, context: int) -> None:
    """Answers whose tokens are many times longer than the template's rendering, in contexts of several sizes."""
    prompts = PromptCache(bundled, context=context)
    messages = chat("question 0")
    for turn in range(12):
        prompt = prompts.render(messages, max_tokens=32)
        assert len(prompt.ids) + 32 <= context
        prompts.remember(prompt, {"role": "assistant", "content": f"{turn}"}, ANSWER * (context // 9))
        messages += [{"role": "assistant", "content": f"{turn}"}, *chat("next")]
    assert len(PromptCache(bundled).render(messages).ids) < context


def test_the_next_turn_costs_as_many_bytes_as_it_has_tokens(bundled: LoadedModel) -> None:
    prompts = PromptCache(bundled)
    told(prompts, 1)
    before = prompts.answers.nbytes
    told(prompts, 2)
    assert prompts.answers.nbytes - before < 1000
