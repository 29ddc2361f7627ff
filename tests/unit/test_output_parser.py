"""Text, reasoning and calls are told apart, and nothing that a model said is lost or changed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.models import LoadedModel
from kvlab.server.generation.output_parser import OutputParser, first_marker, unfinished
from kvlab.server.generation.thinking import thinking_markers
from tests.answer_kit import FAMILIES, FamilyTokenizer, parser_of, read

NAMES = ("hermes", "qwen3-coder", "llama3", "harmony", "muse-spark")
HERMES, QWEN, LLAMA, HARMONY, MUSE = (next(f.format for f in FAMILIES if f.name == name) for name in NAMES)
THINKING = ("<think>", "</think>")
CALL = '<tool_call>\n{"name": "find", "arguments": {"text": "a"}}\n</tool_call>'
FOUND = ("find", {"text": "a"})
CUTTINGS = [(), (1,), (3, 5)]
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", '"', "<", "</", "\n", " ", "{"]
TEXT = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=4)), max_size=8).map("".join)
CUTS = st.lists(st.integers(1, 7), max_size=5)
QUICK = settings(max_examples=60)


# -- text and stop strings ------------------------------------------------------------------------------------------


def decoded(loaded: LoadedModel, text: str, **options) -> tuple[str, OutputParser]:
    parser = OutputParser(loaded.tokenizer.detokenizer, **options)
    pieces = [piece for token in loaded.encode(text) for piece in parser.add(token)] + parser.finish()
    return "".join(piece.text for piece in pieces), parser


def test_stop_strings_end_the_text_wherever_tokens_end(bundled):
    for text in ("one two STOP three", "one two STOP", "one two S"):
        content, parser = decoded(bundled, text, stop=["never", "STOP"])
        stopped = "STOP" in text
        assert content == ("one two " if stopped else "one two S")
        assert parser.stopped == ("STOP" if stopped else None)


def test_characters_of_several_tokens_come_whole(bundled):
    assert decoded(bundled, "naïve ☃ 漢字 🎉")[0] == "naïve ☃ 漢字 🎉"


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_the_first_of_several_stop_strings_ends_the_text(cuts):
    answer = read(None, "a b c", cuts, stop=("c", "b c", "never"))
    assert (answer.content, answer.parser.stopped) == ("a ", "b c")
    answer = read(HERMES, f"x STOP {CALL}", cuts, stop=("STOP",))
    assert (answer.content, answer.calls) == ("x ", [])


@given(TEXT, CUTS)
@QUICK
def test_text_without_tools_and_thinking_is_sent_as_it_is(text, cuts):
    assert read(None, text, cuts).content == text


@given(TEXT, st.lists(st.text(min_size=1, max_size=3), max_size=3))
@QUICK
def test_what_may_become_a_marker_is_held_back_and_no_more(text, markers):
    held = unfinished(text, markers)
    ends = [size for size in range(1, len(text) + 1) for m in markers if len(m) > size and m.startswith(text[-size:])]
    assert held == max(ends, default=0)
    found = first_marker(text, markers, 0)
    assert (found[0] if found else -1) == min((text.find(m) for m in markers if m in text), default=-1)


# -- answers under a grammar ----------------------------------------------------------------------------------------


@given(st.dictionaries(TEXT, TEXT, max_size=3), CUTS, st.booleans())
@QUICK
def test_markers_in_json_of_a_schema_are_text(value, cuts, thinks):
    """Class: answers under response_format with markers of thinking and calls in any of their strings or keys."""
    text = json.dumps(value, ensure_ascii=False)
    said = "is it?</think>\n" + text if thinks else text
    answer = read(HERMES, said, cuts, tools=(), thinking=THINKING, reasoning=thinks, verbatim=True)
    assert json.loads(answer.content) == value
    assert (answer.content, answer.reasoning) == (text, "is it?" if thinks else "")


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_schema_with_tools_gives_calls_or_json(cuts):
    """Class: one grammar for both; JSON that holds a call as text is JSON."""
    assert read(HERMES, f"{CALL}\n{CALL}", cuts, verbatim=True).calls == [FOUND, FOUND]
    text = json.dumps({"a": CALL, "b": "<think>"})
    answer = read(HERMES, text, cuts, verbatim=True, thinking=THINKING)
    assert (answer.content, answer.calls) == (text, [])


# -- thinking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", CUTTINGS)
@pytest.mark.parametrize("opened", [True, False])
def test_thinking_is_told_apart(cuts, opened):
    text = ("" if opened else "<think>") + "is it 4?</think>\n\nIt is 4.\n"
    answer = read(None, text, cuts, thinking=THINKING, reasoning=opened)
    assert (answer.reasoning, answer.content) == ("is it 4?", "It is 4.\n")


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_call_in_thinking_is_a_call_and_thinking_goes_on(cuts):
    answer = read(HERMES, f"I call {CALL} now</think>\nDone.", cuts, thinking=THINKING, reasoning=True)
    assert (answer.calls, answer.reasoning, answer.content) == ([FOUND], "I call  now", "Done.")


@pytest.mark.parametrize(
    ("template", "vocabulary", "markers"),
    [
        ("", ("[THINK]", "[/THINK]"), ("[THINK]", "[/THINK]")),
        ("{{ '<think>' }} </think>", (), ("<think>", "</think>")),
        ("<seed:think> </seed:think>", (), ("<seed:think>", "</seed:think>")),
        ("", ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("no thinking: <think>", (), None),
    ],
)
def test_markers_of_thinking_follow_the_family(template, vocabulary, markers):
    assert thinking_markers(FamilyTokenizer(template, vocabulary=vocabulary)) == markers


# -- calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_text_around_calls_is_kept(cuts):
    answer = read(HERMES, f" Let me look.\n{CALL}\n{CALL}\n\nDone. \n", cuts)
    assert (answer.content, answer.calls) == (" Let me look.Done. \n", [FOUND, FOUND])
    assert read(None, CALL, cuts, tools=()).content == CALL


@pytest.mark.parametrize("cuts", CUTTINGS)
@pytest.mark.parametrize(
    "text",
    [
        "Use the <tool_call> tag, then </tool_call>.",
        "a <tool_call> b",
        '<tool_call>\n{"name": "find", "arguments": {"text": "a",}}\n</tool_call>',
        '<tool_call>{"name": "find"',
        "<tool_call>\n<function=find>\n</tool_call>",
        '<tool_call>{"name": "find", "arguments": "<think>" oops}</tool_call>',
        "<tool_call></tool_call>",
        "<tool_call>",
        "  \n",
    ],
)
def test_what_is_no_call_is_text_whole(cuts, text):
    """Class: prose about markers, broken and unfinished calls of a model that has ended its answer by itself."""
    for form in (HERMES, QWEN):
        answer = read(form, text, cuts, thinking=THINKING)
        assert (answer.content, answer.calls, answer.reasoning) == (text, [], "")


@pytest.mark.parametrize("cuts", CUTTINGS)
@pytest.mark.parametrize(
    "before",
    ["the <tool_call> tag", '<tool_call>{"name": oops}</tool_call>', '<tool_call>\n{"name": "no"}\n</tool_call>'],
)
def test_call_behind_one_that_is_none_is_found(cuts, before):
    answer = read(HERMES, f"{before}\n{CALL}", cuts)
    assert (answer.content, answer.calls) == (before, [FOUND])


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_call_ends_where_its_json_ends(cuts):
    """Class: the end marker is missing, is doubled, or stands in a string."""
    body = '{"name": "find", "arguments": {"text": "x </tool_call> y"}}'
    for after, content in ((" and so on", "and so on"), ("</tool_call> and", "and"), ("", "")):
        answer = read(HERMES, f"<tool_call>{body}{after}", cuts)
        assert answer.calls == [("find", {"text": "x </tool_call> y"})]
        assert answer.content == content
    body = "<function=find>\n<parameter=text>\n</tool_call> </function>\n</parameter>\n</function>"
    answer = read(QWEN, f"<tool_call>\n{body}\n</tool_call>", cuts)
    assert answer.calls == [("find", {"text": "</tool_call> </function>"})]


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_sloppy_tags_of_a_finished_answer_are_read(cuts):
    for text in (
        "<tool_call><function=find><parameter=text>a</parameter></function></tool_call>",
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</parameter>\n</function>",
        "<tool_call>\n<function=find>\n<parameter=text>\na</parameter>\n</function>\n</tool_call>",
        '<tool_call>\n{"name": "find", "arguments": {"text": "a"}}\n</tool_call>',
    ):
        assert read(QWEN, text, cuts).calls == [FOUND]


def test_bare_json_is_a_call_only_where_it_looks_like_one():
    for text in (
        '{"answer": 4}',
        "[1, 2]",
        '{"name": "Mira", "age": 4}',
        "{",
        "[find](http://x)",
        "[find(x)](http://x)",
    ):
        for cuts in CUTTINGS:
            answer = read(LLAMA, text, cuts)
            assert (answer.content, answer.calls) == (text, [])
    assert read(LLAMA, '\n{"type": "function", "name": "find", "parameters": {"text": "a"}}', (2,)).calls == [FOUND]
    # The rest of an answer is not held back for an object that is none of a call.
    parser = parser_of(LLAMA)
    assert "".join(piece.text for piece in parser.feed('{"answer": 4, "why": "')) == '{"answer": 4, "why": "'


def test_halves_of_characters_and_numbers_without_end_are_no_trouble():
    """Class: JSON that Python reads and UTF-8 or JSON cannot hold."""
    call = '<tool_call>{"name": "find", "arguments": {"text": "\\ud83c\\udf89 \\ud83d"}}</tool_call>'
    assert read(HERMES, call).calls == [("find", {"text": "🎉 \ufffd"})]
    for number in ("1e999", "NaN", "9" * 18_000):
        text = f'<tool_call>{{"name": "find", "arguments": {{"count": {number}}}}}</tool_call>'
        answer = read(HERMES, text)
        assert (answer.content, answer.calls) == (text, [])
    deep = '<tool_call>{"name": "find", "arguments": {"inner": ' + '{"a":' * 5000 + "1" + "}" * 5002 + "</tool_call>"
    assert read(HERMES, deep).content == deep


# -- answers that the limit cuts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", CUTTINGS)
@pytest.mark.parametrize(
    "cut",
    [
        '<tool_call>\n{"name": "find", "argum',
        "<tool_call>",
        '<tool_call>\n{"name": "find", "arguments": {"text": "</tool_call>',
    ],
)
def test_call_cut_by_the_limit_is_not_shown_and_whole_ones_are_kept(cuts, cut):
    answer = read(HERMES, f"Look.\n{CALL}\n{cut}", cuts, limited=True)
    assert (answer.content, answer.calls) == ("Look.", [FOUND])
    assert (answer.parser.cut, answer.parser.hides_text) == (True, True)
    assert read(HERMES, f"Look.\n{cut}", cuts, limited=True).content == "Look."


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_limit_behind_a_whole_call_cuts_nothing(cuts):
    for end in ("", "\n</tool_ca", "\n</tool_call>", "\n</tool_call>\n"):
        answer = read(HERMES, CALL.removesuffix("\n</tool_call>") + end, cuts, limited=True)
        assert (answer.calls, answer.content, answer.parser.cut) == ([FOUND], "", False)
    answer = read(HERMES, f"{CALL}\nThen I", cuts, limited=True)
    assert (answer.content, answer.parser.cut, answer.parser.hides_text) == ("Then I", True, False)


def test_limit_in_prose_about_markers_hides_nothing():
    text = "The <tool_call> tag, and then"
    assert read(HERMES, text, limited=True).content == text


# -- channels -------------------------------------------------------------------------------------------------------

ANALYSIS = "<|channel|>analysis<|message|>User asks <think>.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is 4."
TO_FIND = "<|channel|>commentary to=functions.find <|constrain|>json<|message|>"


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_channels_are_reasoning_content_and_calls(cuts):
    answer = read(HARMONY, ANALYSIS + FINAL, cuts, tools=())
    assert (answer.reasoning, answer.content, answer.calls) == ("User asks <think>.", "It is 4.", [])
    for ending in ("", "<|call|>"):
        answer = read(HARMONY, f'{ANALYSIS}{TO_FIND}{{"text": "<|call|> a"}}{ending}', cuts)
        assert (answer.calls, answer.content) == ([("find", {"text": "<|call|> a"})], "")
        assert answer.reasoning == "User asks <think>."
    early = ' to=functions.find<|channel|>commentary json<|message|>{"text": "a"}'
    assert read(HARMONY, early, cuts).calls == [FOUND]
    preamble = f'<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{TO_FIND}{{"text": "a"}}'
    answer = read(HARMONY, preamble, cuts)
    assert (answer.content, answer.calls) == ("I look.", [FOUND])


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_messages_to_recipients_are_reasoning_content_and_calls(cuts):
    call = '<atem:function_calls>\n<atem:invoke name="find">\n<atem:parameter name="text">a</atem:parameter>\n'
    call += "</atem:invoke>\n</atem:function_calls>"
    text = f"to=self<|message|>Hm.<|eom|><|start|>assistant to=find<|message|>{call}<|eom|>"
    answer = read(MUSE, f"{text}<|start|>assistant to=user<|message|>It is 4.<|eot|>", cuts)
    assert (answer.reasoning, answer.content, answer.calls) == ("Hm.", "It is 4.", [FOUND])
    assert read(MUSE, "Plain words.", cuts).content == "Plain words."


@pytest.mark.parametrize("cuts", CUTTINGS)
def test_channels_of_unusual_answers_lose_nothing(cuts):
    assert read(HARMONY, "Plain words.", cuts).content == "Plain words."
    assert "find" in read(HARMONY, TO_FIND + "{oops", cuts).content
    unknown = TO_FIND.replace("find", "unknown") + '{"text": "a"}'
    assert read(HARMONY, unknown, cuts).content == unknown
    answer = read(HARMONY, ANALYSIS + TO_FIND + '{"text": "a', cuts, limited=True)
    assert (answer.content, answer.calls, answer.parser.cut) == ("", [], True)
    value = json.dumps({"a": "<|end|> <|channel|>"})
    answer = read(HARMONY, f"<|channel|>final<|message|>{value}", cuts, verbatim=True)
    assert answer.content == value
