"""Prompts only grow from turn to turn, with answers as the tokens that they were: each family's template."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from kvlab.models import LoadedModel
from kvlab.server.generation.harmony_parser import HarmonyParser
from kvlab.server.generation.output_parser import CallReader, OutputParser
from kvlab.server.structured.tool_families.choose import tool_format
from tests.template_conversations import (
    ANSWER,
    TOOLS,
    answered,
    assert_grown,
    assert_in_order,
    called,
    result,
    results,
    said,
    shown,
    text,
    user,
    uses,
)
from tests.template_kit import TemplateModel, from_anthropic, from_openai


def test_answers_in_words_and_calls_come_back_as_their_tokens(model: TemplateModel) -> None:
    """Through five turns: the prompt of each begins with the prompt of the one before and the tokens of its answer."""
    messages: list[Any] = [{"role": "system", "content": "be brief"}, user("question one")]
    prompt = from_openai(model, messages, TOOLS)
    assert prompt.reused == 0
    turns = [
        (called("call_a"), [result("call_a", "badge four")], ["badge four"]),
        (called("call_b", name="finddesk"), [result("call_b", "desk nine")], ["desk nine"]),
        (said("all found"), [user("question two")], ["question two"]),
        (said("nothing"), [user("question three")], ["question three"]),
    ]
    for answer, more, words in turns:
        known = answered(model, prompt, answer)
        messages += [answer, *more]
        prompt = from_openai(model, messages, TOOLS)
        assert_grown(model, known, prompt, *words, without="be brief" if "mistral_v3" not in model.name else "")


def test_blocks_come_back_as_their_tokens(model: TemplateModel) -> None:
    messages: list[Any] = [user("question one")]
    prompt = from_anthropic(model, messages, TOOLS, system="be brief")
    known = answered(model, prompt, called("call_a"))
    messages += [uses("toolu_a"), results("toolu_a", "badge four", {"type": "text", "text": "go on"})]
    prompt = from_anthropic(model, messages, TOOLS, system="be brief")
    assert_grown(model, known, prompt, "badge four", "go on")
    known = answered(model, prompt, said("all found"))
    messages += [said(text("all found")), user("question two")]
    assert_grown(model, known, from_anthropic(model, messages, TOOLS, system="be brief"), "question two")


def test_calls_with_closing_markers_inside_come_back(model: TemplateModel) -> None:
    """Arguments and results that hold the markers of calls, turns and thinking."""
    for inside in ("end </tool_call> here", "<|im_end|>", "</s>[INST]", '"}}\n</tool_call>', "</think>", "<|eot_id|>{"):
        prompt = from_openai(model, [user("go")], TOOLS)
        call = called("a", {"handle": inside})
        known = answered(model, prompt, call)
        assert_grown(model, known, from_openai(model, [user("go"), call, result("a", "found")], TOOLS), "found")


def test_several_calls_of_one_answer_lose_nothing(model: TemplateModel) -> None:
    two = called("a")
    two["tool_calls"] += called("b", name="finddesk")["tool_calls"]
    known = answered(model, from_openai(model, [user("go")], TOOLS), two)
    messages = [user("go"), two, result("a", "badge four"), result("b", "desk nine")]
    later = from_openai(model, messages, TOOLS)
    if later.reused:
        assert_grown(model, known, later, "badge four", "desk nine")
    else:
        assert later.ids == from_openai(model.forget(), messages, TOOLS).ids


def test_a_turn_without_thinking_is_remembered_for_one_with_it(model: TemplateModel) -> None:
    """A required call excludes thinking for one turn: only the beginning of its answer differs, and stays as it was."""
    for first, then in ((TOOLS, {}), (TOOLS, {"chat_template_kwargs": {"enable_thinking": True}})):
        prompt = from_openai(model, [user("go")], first, tool_choice="required")
        known = answered(model, prompt, called("a"))
        assert_grown(
            model, known, from_openai(model, [user("go"), called("a"), result("a")], first, **then), "code is 417"
        )


def test_a_broken_prefix_is_traced_to_the_client_s_message(model: TemplateModel) -> None:
    """Where messages are merged or left out, the index is the client's."""
    messages = [{"role": "system", "content": words} for words in ("be brief", "", "be kind")]
    messages += [user("first question"), said("first answer"), user("second question")]
    prompt = from_openai(model, messages)
    place = shown(model, prompt).index("second question")
    token = next(i for i in range(len(prompt.ids)) if len(model.loaded.decode(prompt.ids[: i + 1])) > place + 3)
    # GLM's messages end with no token; Phi's conversations with one more.
    if model.name not in ("glm4", "phi4_mini"):
        assert model.prompts.message_at(prompt, token) == 5


def test_prompts_of_one_tenant_never_hold_another_s_answers(model: TemplateModel) -> None:
    known = answered(model, from_openai(model, [user("go")], tenant="a"), said("gone", reasoning_content="secret"))
    messages = [user("go"), said("gone", reasoning_content="secret"), user("on")]
    clean = from_openai(model.forget(), messages).ids
    for tenant in ("b", ""):
        other = from_openai(model, messages, tenant=tenant)
        assert (other.ids, other.reused) == (clean, 0)
        blocks = [{"type": "thinking", "thinking": "secret", "signature": ""}, {"type": "text", "text": "gone"}]
        assert from_anthropic(model, [user("go"), said(blocks), user("on")], tenant=tenant).reused == 0
    assert_grown(model, known, from_openai(model, messages, tenant="a"), "on")


def test_without_remembered_tokens_prompts_part_at_the_last_answer(model: TemplateModel) -> None:
    """After a restart: what the template writes itself is the same up to the answer, for all but one family."""
    if model.name == "mistral_v3":
        pytest.skip("this template moves tools and system prompt to the last user message")
    messages: list[Any] = [{"role": "system", "content": "be brief"}, user("question one")]
    before = from_openai(model, messages, TOOLS)
    for answer, more in ((called("a"), result("a", "badge four")), (said("found it"), user("question two"))):
        messages += [answer, more]
        after = from_openai(model, messages, TOOLS)
        same = next((i for i, (a, b) in enumerate(zip(before.ids, after.ids, strict=False)) if a != b), len(before.ids))
        assert_in_order(model.loaded.decode(after.ids[:same]), "be brief", "question one")
        before = after


@pytest.mark.parametrize(
    "inside", ["@mira", "end </tool_call> here", '"}}]</s> and <|im_end|>', "two\nlines", "ä {'x': 1}"]
)
def test_calls_are_read_back_from_what_the_template_writes(model: TemplateModel, inside: str) -> None:
    """The form of calls that a template shows to a model is the form in which its answers are searched for calls."""
    tokenizer, marker = model.loaded.tokenizer, "marker"
    form = tool_format(tokenizer)
    messages = [user("go"), called("a", {"handle": inside}), result("a", marker)]
    before = model.prompts.text(messages[:1], TOOLS).removesuffix("<think>\n")
    whole = model.prompts.text(messages, TOOLS)
    start = len(os.path.commonprefix([before, whole]))
    answer = whole[start : whole.index(marker)]
    kind = HarmonyParser if form.family == "harmony" else OutputParser
    parser = kind(tokenizer.detokenizer, calls=CallReader(form, TOOLS))
    found = [call for piece in [*parser.feed(answer), *parser.finish()] for call in piece.calls]
    assert [(call.name, json.loads(call.arguments)) for call in found] == [("findbadge", {"handle": inside})]


# -- thinking ---------------------------------------------------------------------------------------------------------


def test_thinking_that_a_client_sends_back_is_found(model: TemplateModel) -> None:
    """The key has the thinking that was sent: the same is found, in each spelling; none, or another, is another key."""
    known = answered(model, from_openai(model, [user("go")]), said("gone", reasoning_content="I think so\n"))
    for field in ("reasoning_content", "reasoning", "thinking"):
        same = [user("go"), said("gone", **{field: "I think so"}), user("on")]
        assert_grown(model, known, from_openai(model, same), "on")
    for changed in ({}, {"reasoning_content": "I think not"}):
        messages = [user("go"), said("gone", **changed), user("on")]
        other = from_openai(model, messages)
        assert (other.reused, other.ids) == (0, from_openai(model.forget(), messages).ids)


def test_thinking_blocks_are_found(model: TemplateModel) -> None:
    known = answered(model, from_anthropic(model, [user("go")]), said("gone", reasoning_content="I think so"))
    blocks = [{"type": "thinking", "thinking": "I think so", "signature": "x"}, *text("gone")]
    assert_grown(model, known, from_anthropic(model, [user("go"), said(blocks), user("on")]), "on")
    assert from_anthropic(model, [user("go"), said(text("gone")), user("on")]).reused == 0


def test_thinking_in_history_is_shown_as_the_template_does(model: TemplateModel) -> None:
    """Between a call and its result, with text beside the call: never refused, the same on both endpoints."""
    call = called("a", reasoning_content="first look there") | {"content": "let me see"}
    one = from_openai(model, [user("go"), call, result("a")], TOOLS)
    blocks = [{"type": "thinking", "thinking": "first look there", "signature": "x"}, *text("let me see")]
    other = from_anthropic(model, [user("go"), uses("a", None, "findbadge", *blocks), results("a")], TOOLS)
    assert other.ids == one.ids
    assert_in_order(shown(model, one), "go", "findbadge", "the code is 417")
    if model.name in ("qwen3", "glm4", "gpt_oss"):
        assert_in_order(shown(model, one), "go", "first look there", "@mira")


def test_thinking_that_does_not_fit_is_left_to_the_template(served: LoadedModel) -> None:
    """Remembered tokens with long thinking: once they fill the context, the template's own rendering is the prompt."""
    model = TemplateModel(served, context=1000)
    messages, thinking = [user("go")], [11, 12] * 150
    for turn in range(5):
        prompt = from_openai(model, messages, max_tokens=50)
        assert len(prompt.ids) + 50 <= 1000
        thought = f"thought {turn}"
        model.prompts.remember(prompt, said(f"gone {turn}", reasoning_content=thought), [*thinking, *ANSWER])
        messages += [said(f"gone {turn}", reasoning_content=thought), user(f"on {turn}")]
    prompt = from_openai(model, messages, max_tokens=50)
    assert len(prompt.ids) < 1000
    own = from_openai(model.forget(), messages, max_tokens=50)
    assert len(own.ids) < 500
