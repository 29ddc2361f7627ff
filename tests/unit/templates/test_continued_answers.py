"""An assistant message at the end is continued, or refused with a reason: each family's template."""

from __future__ import annotations

import pytest

from kvlab.server.errors import ApiError
from tests.template_conversations import (
    TOOLS,
    answered,
    assert_grown,
    called,
    said,
    shown,
    text,
    user,
)
from tests.template_kit import TemplateModel, from_anthropic, from_openai


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
