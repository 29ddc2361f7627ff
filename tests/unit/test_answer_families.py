"""Calls of every model family come back as they were meant, whatever is in their arguments and however they are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kvlab.server.generation.prompt_cache import PromptCache
from kvlab.server.structured.tool_families.choose import tool_format
from tests.answer_kit import FAMILIES, PARSERS, TOOLS, Family, FamilyTokenizer, holds_ambiguous, read
from tests.template_kit import FAMILIES as STYLES
from tests.template_kit import with_template

MARKERS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "</parameter>", "\n</parameter>\n", "</function>",
    "<function=find>", "<parameter=text>", "</arg_value>", "<arg_key>", "[TOOL_CALLS]", "[ARGS]", "<|call|>", "<|end|>",
    "<|channel|>", "<|message|>", "<|tool_call_end|>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```", "\n```\n",
    "<|tool_call_start|>", "<|tool_call_end|>", "<|python_tag|>", "</invoke>", "</minimax:tool_call>", "</TOOLCALL>",
    "<tool_call|>", "<end_function_call>", "<|END_ACTION|>", "</function_calls>", "</param>", "}", "]", ")", '"', "'",
    "\\", "\\\"", "\n", "{", "[", ";", ", ", "é", "漢", "🎉", "\u2028", "</to", "ol_call>", "]]", "null", "5", "true",
]  # fmt: skip
PARTS = [
    "to=functions.find ", "<|start|>assistant", "<|channel|>final<|message|>", "[ARGS]{}", "call:find{}", "[find()]",
    '{"name": "find", "arguments": {}}', '{"name": "find", "parameters": {}}', '<invoke name="find">', "find",
    "<function=find>\n</function>", "<start_function_call>", "<minimax:tool_call>", "<TOOLCALL>", "<|tool_call|>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|tool_call>", "<tool_calls>", "{}", "[]",
    "</tool_calls>", "functools",
]  # fmt: skip
"""Pieces that calls are made of, in any order."""
TEXT = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=6)), max_size=6).map("".join)
KEYS = st.sampled_from(["a", "b_c", "path"])
INNER = st.dictionaries(KEYS, st.one_of(TEXT, st.integers(), st.booleans(), st.lists(TEXT, max_size=2)), max_size=2)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXT,
        "more": TEXT,
        "count": st.integers(-(10**12), 10**12),
        "flag": st.booleans(),
        "items": st.lists(TEXT, max_size=3),
        "inner": INNER,
    },
)
CUTS = st.lists(st.integers(1, 9), max_size=6)
QUICK = settings(max_examples=15, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


def by_name(family: Family) -> str:
    return family.name


@pytest.mark.parametrize("family", FAMILIES, ids=by_name)
def test_family_is_known_by_its_template(family):
    assert family.format.family == family.name
    assert family.format.known


@pytest.mark.parametrize("family", FAMILIES, ids=by_name)
@given(given_arguments=st.lists(ARGUMENTS, min_size=1, max_size=3), cuts=CUTS, spoken=st.booleans())
@QUICK
def test_any_arguments_come_back_in_any_chunking(family, given_arguments, cuts, spoken):
    """Class: arguments that hold markers of any family, quotes, braces, line breaks, any Unicode; any streaming."""
    assume(not any(holds_ambiguous(family, arguments) for arguments in given_arguments))
    calls = [("write_file" if i % 2 else "find", one) for i, one in enumerate(given_arguments[: family.most_calls])]
    before = "Let me look." if spoken and not family.bare else ""
    answer = read(family.format, before + family.write(calls), cuts)
    assert answer.calls == calls
    assert (answer.content, answer.reasoning) == (before, "")


@pytest.mark.parametrize("family", FAMILIES, ids=by_name)
@given(text=st.lists(st.sampled_from(MARKERS + PARTS), max_size=8).map("".join), cuts=CUTS, limited=st.booleans())
@QUICK
def test_text_does_not_depend_on_how_it_is_cut(family, text, cuts, limited):
    """Class: text full of markers and of pieces of calls."""
    options = {"thinking": ("<think>", "</think>"), "limited": limited}
    whole, cut = read(family.format, text, **options), read(family.format, text, cuts, **options)
    assert (cut.content, cut.reasoning, cut.calls) == (whole.content, whole.reasoning, whole.calls)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in PARSERS], ids=by_name)
@given(text=st.lists(st.sampled_from(MARKERS + PARTS), max_size=8).map("".join), cuts=CUTS)
@QUICK
def test_answer_without_a_call_is_the_text_that_was_said(family, text, cuts):
    answer = read(family.format, text, cuts)
    assert answer.calls or answer.content == text


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "harmony"], ids=by_name)
@given(arguments=ARGUMENTS, cuts=CUTS)
@QUICK
def test_call_of_an_unknown_tool_is_returned_as_text_whole(family, arguments, cuts):
    assume(not holds_ambiguous(family, arguments))
    text = family.write([("unknown", arguments)])
    answer = read(family.format, text, cuts)
    assert answer.calls == []
    assert answer.content == text


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.most_calls > 1], ids=by_name)
@given(arguments=ARGUMENTS, cuts=CUTS, share=st.floats(0.3, 0.97))
@QUICK
def test_call_that_the_limit_cuts_is_never_delivered_short(family, arguments, cuts, share):
    """Class: a second call cut anywhere. The first is whole; of the second nothing, or all of it."""
    assume(not holds_ambiguous(family, arguments) and arguments)
    first = [("find", {"text": "a"})]
    both = family.write([*first, ("write_file", arguments)])
    at = len(family.write(first)) + int(share * (len(both) - len(family.write(first))))
    answer = read(family.format, both[:at], cuts, limited=True)
    assert answer.calls in (first, [*first, ("write_file", arguments)])
    assert "write_file" not in answer.content
    if len(answer.calls) == 1 and "write_file" in both[:at]:
        assert answer.parser.cut


def test_template_of_no_known_family_is_marked():
    made = tool_format(FamilyTokenizer("{{ messages }}"))
    assert (made.known, made.family) == (False, "unknown")


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_calls_are_read_as_chat_templates_write_them(bundled, style, tmp_path):
    """Class: templates of many families; the call of an earlier turn, as the template renders it, is read again."""
    loaded = with_template(bundled, style, tmp_path / "model")
    prompts = PromptCache(loaded)
    question = {"role": "user", "content": "x"}
    arguments = {"text": "a b", "count": 5}
    described = [{**tool, "function": {**tool["function"], "description": "d"}} for tool in TOOLS]
    call = {"id": "callabcde", "type": "function", "function": {"name": "find", "arguments": json.dumps(arguments)}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "callabcde", "content": "ok"}
    before = prompts.text([question], described, generation=False)
    header = prompts.text([question], described)[len(before) :].partition("<think>")[0]
    answer = prompts.text([question, said, result], described)[len(before) :].removeprefix(header)
    for end in (loaded.decode([token]) for token in loaded.eos):
        answer = answer.partition(end)[0]
    assert read(tool_format(loaded.tokenizer), answer, (3,)).calls == [("find", arguments)]
