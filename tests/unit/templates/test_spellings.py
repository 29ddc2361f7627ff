"""One conversation gives one prompt, however it is spelled: each family's template, both protocols."""

from __future__ import annotations

from typing import Any

import pytest

from kvlab.server.errors import ApiError
from tests.template_conversations import (
    IMAGE,
    IMAGE_URL,
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


def test_parts_are_the_text_that_they_hold(model: TemplateModel) -> None:
    """Content as a list of parts, in each role and in both protocols, where a template prints, joins or drops lists."""
    plain = [user("hello you"), said("good day"), user("what is new")]
    parts = [user(text("hello ", "you")), said(text("good ", "day")), user(text("what is new"))]
    wanted = from_openai(model, [{"role": "system", "content": "be brief"}, *plain]).ids
    assert from_openai(model, [{"role": "system", "content": text("be brief")}, *parts]).ids == wanted
    assert from_anthropic(model, plain, system="be brief").ids == wanted
    assert from_anthropic(model, parts, system=text("be ", "brief")).ids == wanted
    assert_in_order(model.loaded.decode(wanted), "hello you", "good day", "what is new")
    assert model.loaded.decode(wanted).count("be brief") == 1


def test_parts_without_space_between_them_stay_apart(model: TemplateModel) -> None:
    wanted = from_openai(model, [user("one\ntwo")]).ids
    assert from_openai(model, [user(text("one", "two"))]).ids == wanted
    assert from_anthropic(model, [user(text("one", "", "two"))]).ids == wanted


@pytest.mark.parametrize("arguments", ['{"handle":"@mira"}', {"handle": "@mira"}, '{ "handle" :\n"@mira" }'])
@pytest.mark.parametrize("identifier", ["call_0123456789abcdef01234567", "1", "toolu_01A", "abcdefghi"])
def test_calls_do_not_depend_on_ids_and_spelling(model: TemplateModel, identifier: str, arguments: Any) -> None:
    """Ids of every server, and arguments as text or object, where a template wants nine characters or its own ids."""
    wanted = from_openai(model, [user("go"), called("x" * 9), result("x" * 9), said("417"), user("on")], TOOLS)
    calls = [user("go"), called(identifier, arguments), result(identifier, text("the code is 417"))]
    assert from_openai(model, [*calls, said("417"), user("on")], TOOLS).ids == wanted.ids
    blocks = [user("go"), uses(identifier), results(identifier), said("417"), user("on")]
    assert from_anthropic(model, blocks, TOOLS).ids == wanted.ids
    whole = shown(model, wanted)
    assert_in_order(whole, "go", "findbadge", "@mira", "the code is 417", "417", "on")
    assert "Does findbadge." in whole
    assert "'handle'" not in whole


def test_two_calls_get_their_own_results(model: TemplateModel) -> None:
    """Parallel calls, results in another order than the calls, ids that a client uses again in each turn."""
    two = called("a")
    two["tool_calls"] += called("b", {"handle": "@otto"}, "finddesk")["tool_calls"]
    messages = [user("go"), two, result("b", "desk nine"), result("a", "badge four"), said("done"), user("on")]
    blocks = [
        user("go"),
        {"role": "assistant", "content": uses("a")["content"] + uses("b", {"handle": "@otto"}, "finddesk")["content"]},
        {"role": "user", "content": results("b", "desk nine")["content"] + results("a", "badge four")["content"]},
        said("done"),
        user("on"),
    ]
    prompt = from_openai(model, messages, TOOLS)
    assert from_anthropic(model, blocks, TOOLS).ids == prompt.ids
    whole = shown(model, prompt)
    assert_in_order(whole, "@mira", "badge four")
    assert_in_order(whole, "@otto", "desk nine")
    for word in ("@mira", "@otto", "badge four", "desk nine"):
        assert whole.count(word) == 1
    again = from_openai(model, [*messages[:-1], user("more"), called("a"), result("a", "badge five")], TOOLS)
    assert_in_order(shown(model, again), "desk nine", "more", "@mira", "badge five")


def test_tools_do_not_depend_on_spelling(model: TemplateModel) -> None:
    """Fields that clients leave out or add: no description, no parameters, strict, the other protocol's form."""
    empty = {"type": "object", "properties": {}}
    function = {"name": "findbadge", "description": "", "parameters": empty}
    wanted = from_openai(model, [user("go")], [{"type": "function", "function": function}]).ids
    for fields in (
        {},
        {"description": None},
        {"parameters": empty, "strict": True},
        {"description": "", "strict": False},
    ):
        tools = [{"type": "function", "function": {"name": "findbadge", **fields}}]
        assert from_openai(model, [user("go")], tools).ids == wanted
    offered = [{"name": "findbadge", "input_schema": empty, "cache_control": {"type": "ephemeral"}}]
    assert from_anthropic(model, [user("go")], offered).ids == wanted


def test_old_function_calls_are_calls(model: TemplateModel) -> None:
    function = {"name": "findbadge", "arguments": '{"handle": "@mira"}'}
    old = [
        user("go"),
        {"role": "assistant", "function_call": function},
        {"role": "function", "name": "findbadge", "content": "417"},
    ]
    new = [user("go"), called("a"), result("a", "417")]
    assert from_openai(model, old, TOOLS).ids == from_openai(model, new, TOOLS).ids


def test_malformed_arguments_are_shown(model: TemplateModel) -> None:
    """Calls of other models in the history: cut JSON, a list, a number; they would end the conversation for ever."""
    for arguments in ('{"handle": "@mi', "[@mira]", "@mira", "417"):
        prompt = from_openai(model, [user("go"), called("a", arguments), result("a", "no such call")], TOOLS)
        assert_in_order(shown(model, prompt).replace("\\", ""), "go", "findbadge", arguments.replace('"', "")[-3:])


def test_images_in_results_are_named_and_left_out(model: TemplateModel) -> None:
    shot = [{"type": "text", "text": "a picture:"}, IMAGE]
    wanted = from_anthropic(model, [user("go"), uses("a"), results("a", shot)], TOOLS)
    url = [{"type": "text", "text": "a picture:"}, IMAGE_URL]
    assert from_openai(model, [user("go"), called("a"), result("a", url)], TOOLS).ids == wanted.ids
    whole = shown(model, wanted)
    assert_in_order(whole, "a picture:", "[image left out: this model reads text only]")
    assert "aaaa" not in whole
    for content in ([IMAGE_URL], [{"type": "input_audio", "input_audio": {}}], [{"type": "file", "file": {}}]):
        assert "left out: this model reads text only" in shown(
            model, from_openai(model, [user("go"), called("a"), result("a", content)], TOOLS)
        )


def test_images_of_users_are_refused(model: TemplateModel) -> None:
    with pytest.raises(ApiError, match=r"'image' is not supported.*send text"):
        from_anthropic(model, [user([IMAGE])])
    with pytest.raises(ApiError, match=r"'image_url' is not supported.*send text"):
        from_openai(model, [user([{"type": "text", "text": "see"}, IMAGE_URL])])


def test_documents_with_text_are_their_text(model: TemplateModel) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "the code is 417"}
    wanted = from_openai(model, [user("the code is 417")]).ids
    assert from_anthropic(model, [user([{"type": "document", "source": source}])]).ids == wanted


@pytest.mark.parametrize("ending", ["\n", ";\n", "; "])
def test_only_the_billing_line_is_removed(model: TemplateModel, ending: str) -> None:
    """Claude Code's changing line, alone in a block or followed by the real prompt, on both endpoints."""
    wanted = from_openai(model, [{"role": "system", "content": "You are an agent.\nBe brief."}, user("go")]).ids
    for changing in ("cc_version=2.1.7; cch=00000", "cc_version=2.1.7; cc_entrypoint=cli; cch=a1b2c"):
        line = f"x-anthropic-billing-header: {changing}"
        system = line + ending + "You are an agent.\nBe brief."
        assert from_openai(model, [{"role": "system", "content": system}, user("go")]).ids == wanted
        assert from_anthropic(model, [user("go")], system=system).ids == wanted
        blocks = text(line, "You are an agent.", "Be brief.")
        assert from_openai(model, [{"role": "system", "content": blocks}, user("go")]).ids == wanted
        assert from_anthropic(model, [user("go")], system=blocks).ids == wanted


# -- system messages --------------------------------------------------------------------------------------------------


def test_leading_system_messages_are_one(model: TemplateModel) -> None:
    wanted = from_openai(model, [{"role": "system", "content": "be brief\n\nbe kind"}, user("go")], TOOLS).ids
    both = [{"role": role, "content": words} for role, words in (("system", "be brief"), ("developer", "be kind"))]
    assert from_openai(model, [*both, user("go")], TOOLS).ids == wanted
    assert from_openai(model, [*both, {"role": "system", "content": " "}, user("go")], TOOLS).ids == wanted


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["talk", "tools"])
def test_late_system_messages_stay_where_they_are(model: TemplateModel, tools: Any) -> None:
    """A reminder after a user's message, before one, and after a result: shown in place, and prompts only grow."""
    reminder = {"role": "system", "content": "mind the gap"}
    first = [{"role": "system", "content": "be brief"}, user("go"), reminder]
    prompt = from_openai(model, first, tools)
    assert_in_order(shown(model, prompt), "be brief", "go", "mind the gap")
    known = answered(model, prompt, said("gone"))
    later = [*first, said("gone"), {"role": "system", "content": "mind the step"}, user("walk on")]
    prompt = from_openai(model, later, tools)
    assert_grown(model, known, prompt, "mind the step", "walk on", without="mind the gap")
    assert_in_order(
        shown(model, from_openai(model.forget(), later, tools)),
        "go",
        "mind the gap",
        "gone",
        "mind the step",
        "walk on",
    )
    if tools is None:
        return
    known = answered(model, prompt, called("a"))
    later += [called("a"), result("a"), {"role": "system", "content": "mind the doors"}]
    assert_grown(model, known, from_openai(model, later, tools), "the code is 417", "mind the doors")
