"""Keys and values of calls in a text, by character: the class is any arguments in any form, keys in any order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.workloads.call_spans import Span, argument_spans, changed_part, kind_of

KEYS = st.text("abcdefgh_", min_size=1, max_size=8)
VALUES = st.recursive(
    st.one_of(st.text(max_size=12), st.integers(-999, 999), st.booleans(), st.none(), st.floats(-1e6, 1e6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_every_key_is_found_in_json_in_any_order(arguments: dict[str, Any], in_ascii: bool, is_sorted: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=in_ascii, sort_keys=is_sorted)
    text = f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
    begin = text.index(written)
    spans = argument_spans(text, begin, begin + len(written), arguments)
    assert all(begin <= span.start <= span.stop <= begin + len(written) for span in spans)
    found = [text[span.start : span.stop] for span in spans]
    for key in arguments:
        assert key in found


@pytest.mark.parametrize(
    "form",
    [
        '{"city": "New York", "days": 3, "on": true}',
        "{'city': 'New York', 'days': 3, 'on': True}",
        "city='New York', days=3, on=True",
        "<parameter=city>\nNew York\n</parameter>\n<parameter=days>\n3\n</parameter><parameter=on>true</parameter>",
        "city: New York\ndays: 3\non: true",
        '{"on": true, "days": 3, "city": "New York"}',
    ],
)
def test_values_are_found_in_every_form(form: str) -> None:
    spans = argument_spans(form, 0, len(form), {"city": "New York", "days": 3, "on": True})
    found = [form[span.start : span.stop].lower() for span in spans]
    assert {"city", "new york", "days", "3", "on"} <= set(found)


def test_a_number_is_not_found_inside_of_another() -> None:
    text = '{"a": 15, "b": 5}'
    assert [text[s.start : s.stop] for s in argument_spans(text, 0, len(text), {"b": 5})] == ["b", "5"]
    assert argument_spans(text, 0, len(text), {"b": 5})[-1].start == text.rindex("5")


def test_arguments_that_are_not_found_count_as_a_whole() -> None:
    assert argument_spans("xx!!yy", 2, 4, {"key": "value"}) == [Span("argument", 2, 4)]
    assert argument_spans("xxyy", 2, 2, {}) == []


def test_a_token_of_two_kinds_is_a_name_before_an_argument() -> None:
    spans = [Span("syntax", 0, 20), Span("name", 5, 8), Span("argument", 8, 12)]
    assert [kind_of(*place, spans) for place in [(0, 5), (4, 6), (7, 9), (8, 9), (12, 13), (30, 31), (5, 5)]] == [
        "syntax", "name", "name", "argument", "syntax", "prose", "name",
    ]  # fmt: skip


@given(st.text("ab", max_size=6), st.text("cd", max_size=4), st.text("ef", max_size=4), st.text("ab", max_size=6))
def test_the_changed_part_is_what_was_replaced(before: str, old: str, new: str, after: str) -> None:
    place = changed_part(before + old + after, before + new + after)
    if old == new:
        assert place is None
    else:
        assert place == (len(before), len(before) + len(old))
