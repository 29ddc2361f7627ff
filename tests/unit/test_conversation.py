"""Spellings of a conversation: whatever parts, fields, ids and protocol a client chooses, the canonical form is one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.models.templates import REASONING_FIELDS
from kvlab.server.anthropic.parse import conversation
from kvlab.server.anthropic.types import CountRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.conversation import canonical, joined, key_parts, without_billing_line

WORDS = st.text("ab <>/\n{}\"'ä", max_size=12)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | WORDS, lambda inner: st.lists(inner, max_size=3))
ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3)
CALL = st.tuples(st.sampled_from(["find", "set_desk"]), ARGUMENTS, WORDS)
TURN = st.fixed_dictionaries(
    {"user": WORDS, "answer": WORDS, "thinking": WORDS, "calls": st.lists(CALL, max_size=3), "late": WORDS}
)
Turn = dict[str, Any]


def in_parts(text: str, cuts: list[int]) -> list[dict[str, str]]:
    """The text as parts, cut only where space stands, so that no line break is put between them."""
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    places = [i for i in places if 0 < i < len(text) and (text[i - 1].isspace() or text[i].isspace())]
    return [{"type": "text", "text": text[a:b]} for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def spelled(turns: list[Turn], choose: Any) -> list[dict[str, Any]]:
    """The conversation in OpenAI's protocol, with choices of its spelling drawn."""
    messages: list[dict[str, Any]] = []

    def content(text: str) -> Any:
        forms = [text, in_parts(text, choose(st.lists(st.integers(0, 20), max_size=3)))]
        return choose(st.sampled_from(forms if text else [*forms, None, []]))

    for number, turn in enumerate(turns):
        if turn["late"].strip() and number:
            messages.append(
                {"role": choose(st.sampled_from(["system", "developer"])), "content": content(turn["late"])}
            )
        messages.append({"role": "user", "content": content(turn["user"])})
        answer: dict[str, Any] = {"role": "assistant", "content": content(turn["answer"])}
        if turn["thinking"]:
            answer[choose(st.sampled_from(REASONING_FIELDS))] = turn["thinking"]
        elif choose(st.booleans()):
            answer["reasoning_content"] = None
        ids = [f"{choose(st.sampled_from(['call_', 'toolu_', '']))}{number}x{i}" for i in range(len(turn["calls"]))]
        calls = []
        for identifier, (name, arguments, _) in zip(ids, turn["calls"], strict=True):
            text = json.dumps(arguments, indent=choose(st.sampled_from([None, 2])))
            given = choose(st.sampled_from([arguments, text]))
            calls.append({"id": identifier, "function": {"name": name, "arguments": given}, "type": "function"})
        if calls or choose(st.booleans()):
            answer["tool_calls"] = calls or None
        messages.append(answer)
        order = choose(st.permutations(range(len(ids)))) if choose(st.booleans()) else range(len(ids))
        results = {
            i: {"role": "tool", "tool_call_id": ids[i], "content": content(turn["calls"][i][2])}
            for i in range(len(ids))
        }
        messages += [results[i] for i in order]
    return messages


def by_call(messages: Any) -> list[Any]:
    """Messages with the results of one answer in the order of its calls."""
    made: list[Any] = []
    for message in messages:
        made.append(message)
        while len(made) > 1 and made[-2]["role"] == made[-1]["role"] == "tool":
            if made[-2]["tool_call_id"] <= made[-1]["tool_call_id"]:
                break
            made[-2], made[-1] = made[-1], made[-2]
    return made


@settings(max_examples=150)
@given(st.lists(TURN, max_size=4), st.data())
def test_every_spelling_has_one_canonical_form(turns: list[Turn], data: st.DataObject) -> None:
    one, other = canonical(spelled(turns, data.draw)), canonical(spelled(turns, data.draw))
    assert canonical(one) == one
    ordered = [by_call(list(form)) for form in (one, other)]
    for form in ordered:  # sorted within a run: bubble until nothing changes
        while (again := by_call(form)) != form:
            form[:] = again
    assert ordered[0] == ordered[1]


@settings(max_examples=150)
@given(st.lists(TURN, min_size=1, max_size=4))
def test_both_protocols_have_one_canonical_form(turns: list[Turn]) -> None:
    plain: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        ids = [f"{number}x{i}" for i in range(len(turn["calls"]))]
        plain += [{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": turn["answer"]}]
        blocks += [{"role": "user", "content": turn["user"]}]
        answer: list[Any] = [{"type": "text", "text": turn["answer"]}]
        if turn["thinking"]:
            plain[-1]["reasoning_content"] = turn["thinking"]
            answer.insert(0, {"type": "thinking", "thinking": turn["thinking"], "signature": ""})
        calls = [(i, name, arguments) for i, (name, arguments, _) in zip(ids, turn["calls"], strict=True)]
        plain[-1]["tool_calls"] = [{"id": i, "function": {"name": n, "arguments": json.dumps(a)}} for i, n, a in calls]
        answer += [{"type": "tool_use", "id": i, "name": n, "input": a} for i, n, a in calls]
        blocks.append({"role": "assistant", "content": answer})
        results = list(zip(ids, turn["calls"], strict=True))
        plain += [{"role": "tool", "tool_call_id": i, "content": result} for i, (_, _, result) in results]
        if results:
            content = [{"type": "tool_result", "tool_use_id": i, "content": result} for i, (_, _, result) in results]
            blocks.append({"role": "user", "content": content})
    messages, _, _ = conversation(CountRequest.model_validate({"messages": blocks}))
    assert canonical(messages) == canonical(plain)


@given(st.lists(WORDS, max_size=6))
def test_parts_keep_every_character(texts: list[str]) -> None:
    made = joined(texts)
    assert made.replace("\n", "") == "".join(texts).replace("\n", "")
    assert len(made) - len("".join(texts)) < max(1, len([text for text in texts if text]))


@given(st.text("ab;= \n", max_size=30), st.text("ab;= \n", max_size=30))
def test_a_billing_line_takes_nothing_of_the_lines_after_it(line: str, rest: str) -> None:
    head = "x-anthropic-billing-header:" + line.replace("\n", " ")
    assert without_billing_line(f"{head}\n{rest}").endswith(rest)
    assert "billing" not in without_billing_line(f"{head}\n{rest}")
    assert without_billing_line(f"{rest}{head}") == f"{rest}{head}" or rest == ""


def test_the_key_has_all_that_a_template_could_show() -> None:
    base = {"role": "assistant", "content": "a", "reasoning_content": "t"}
    call = {"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": {"a": 1}}}]}
    forms = [
        base,
        base | {"content": "b"},
        base | {"reasoning_content": "u"},
        base | call,
        {"role": "user", "content": "a"},
    ]
    forms += [{"role": "user", "content": "a", "name": "anna"}, {"role": "system", "content": "a"}]
    keys = [json.dumps([key_parts(m) for m in canonical([{"role": "user", "content": "?"}, form])]) for form in forms]
    assert len(set(keys)) == len(forms)
    same = canonical([base | {"content": " a\n", "reasoning_content": "t\n", "refusal": None}])
    assert key_parts(same[0]) == key_parts(canonical([base])[0])


@pytest.mark.parametrize(
    "content",
    [5, {"text": "a"}, [5], [{"type": "text"}], [{"type": "text", "text": 5}], [["text"]], [{"type": "thinking"}, 5]],
)
def test_content_of_another_shape_is_refused(content: Any) -> None:
    for role in ("user", "assistant", "system"):
        with pytest.raises(ApiError) as refused:
            canonical([{"role": role, "content": content}])
        assert refused.value.status == 400


@pytest.mark.parametrize("calls", [[{}], [5], [{"function": None}], [{"function": {"arguments": "{}"}}]])
def test_calls_of_another_shape_are_refused(calls: Any) -> None:
    with pytest.raises(ApiError, match="a tool call has a function"):
        canonical([{"role": "assistant", "tool_calls": calls}])
