"""Chat templates of many families: one conversation gives one prompt however it is spelled, and prompts only grow.

Every test runs with every template of ``tests/templates``, through both protocols' parsers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvlab.models import LoadedModel
from kvlab.server.errors import ApiError
from kvlab.server.generation.harmony_parser import HarmonyParser
from kvlab.server.generation.output_parser import CallReader, OutputParser
from kvlab.server.generation.prompt_cache import RenderedPrompt
from kvlab.server.structured.tool_families.choose import tool_format
from tests.template_kit import FAMILIES, TemplateModel, from_anthropic, from_openai, with_template

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


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def served(
    request: pytest.FixtureRequest, bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp(str(request.param))
    return with_template(bundled, request.param, folder / "model")


@pytest.fixture
def model(served: LoadedModel) -> TemplateModel:
    return TemplateModel(served)


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


# -- spellings --------------------------------------------------------------------------------------------------------


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


# -- prompts only grow ------------------------------------------------------------------------------------------------


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


# -- an answer at the end ---------------------------------------------------------------------------------------------


def test_an_answer_at_the_end_is_continued(model: TemplateModel) -> None:
    """Text that a client puts into the assistant's mouth: the prompt ends with it, and the whole comes back later."""
    messages = [user("count"), said("one, two,")]
    prompt = from_openai(model, messages)
    assert from_anthropic(model, [user("count"), said(text("one, two,"))]).ids == prompt.ids
    whole = shown(model, prompt)
    assert whole.endswith("one, two,")
    assert whole.count("one, two,") == 1
    assert not prompt.reasoning
    known = answered(model, prompt, said(" three"))
    later = from_openai(model, [user("count"), said("one, two, three"), user("on")])
    assert_grown(model, known, later, "on", without="three")


def test_an_answer_that_was_cut_is_continued_from_its_tokens(model: TemplateModel) -> None:
    known = answered(model, from_openai(model, [user("count")]), said("one, tw"))
    prompt = from_openai(model, [user("count"), said("one, tw")])
    assert (prompt.ids, prompt.reused) == (known, len(known))


def test_an_answer_at_the_end_after_earlier_ones_is_continued(model: TemplateModel) -> None:
    known = answered(model, from_openai(model, [user("count")]), said("no"))
    prompt = from_openai(model, [user("count"), said("no"), user("please"), said("one,")])
    assert_grown(model, known, prompt, "please", "one,")
    assert shown(model, prompt).endswith("one,")


def test_an_empty_answer_at_the_end_is_none(model: TemplateModel) -> None:
    wanted = from_openai(model, [user("count")]).ids
    assert from_openai(model, [user("count"), said("")]).ids == wanted
    assert from_anthropic(model, [user("count"), said(" \n")]).ids == wanted


def test_what_cannot_be_continued_is_refused(model: TemplateModel) -> None:
    for last, message in (
        (called("a"), "send their results"),
        (said("", reasoning_content="well"), "thinking and no text"),
    ):
        with pytest.raises(ApiError, match=message) as refused:
            from_openai(model, [user("go"), last], TOOLS)
        assert refused.value.status == 400
    with pytest.raises(ApiError, match="end the messages with a user message"):
        from_openai(model, [user("go"), said("{")], response_format={"type": "json_object"})
    with pytest.raises(ApiError, match="end the messages with a user message"):
        from_anthropic(model, [user("go"), said("I")], TOOLS, tool_choice={"type": "any"})
    with pytest.raises(ApiError, match="nothing to answer"):
        from_openai(model, [{"role": "system", "content": ""}])
