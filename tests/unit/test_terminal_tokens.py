"""Tokens on a terminal: states told apart with and without colour, and no control of the terminal by their text."""

from __future__ import annotations

import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.inspection.terminal import COLORS, FIRST_SHOWN, LAST_SHOWN, MARKS, legend, printable, state_of, tokens_text
from kvlab.inspection.tokens import EVICTED, KEPT, RESTORED, TokenState, token_states

GONE = pl.DataFrame({"layer": [0, 0, 1], "head": [0, 0, 0], "position": [1, 2, 1], "step": [0, 0, 0]})
TEXTS = ["a", " b", " c", " d", " e"]
STATES = token_states(5, 4, GONE, cached=1, heads=3)


def test_runs_of_one_state_are_marked_without_colour() -> None:
    assert tokens_text(TEXTS, STATES, color=False) == "{+a+}[~~ b~~][~ c~] d e"
    assert [line.split("  ")[0] for line in legend(STATES, color=False).splitlines()] == [
        "kept 2", "{+restored 1+}", "[~in part 1~]", "[~~mostly evicted 1~~]", "[-evicted 0-]"
    ]  # fmt: skip


def test_colours_end_with_each_line_and_leave_the_text() -> None:
    shown = tokens_text(["a\n\nb", "c"], [TokenState(EVICTED, False, 1.0), TokenState(KEPT, False, 0.0)], color=True)
    assert shown == "\x1b[31;9ma\x1b[0m\n\n\x1b[31;9mb\x1b[0mc"
    assert len(set(COLORS.values())) == len(COLORS) and len(set(MARKS.values())) == len(MARKS)


def test_the_meanings_of_a_legend_stand_below_each_other() -> None:
    for color in (True, False):
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in legend(STATES, color=color).splitlines()]
        assert len({re.search(r"  +(?=\S+:? \S+ \S+)", line).end() for line in lines}) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("length", [FIRST_SHOWN + LAST_SHOWN, FIRST_SHOWN + LAST_SHOWN + 1, 3000])
def test_a_long_text_is_its_two_ends_and_a_count(length: int) -> None:
    texts = [f" {i}" for i in range(length)]
    states = token_states(length, length, GONE, heads=2)
    shown = tokens_text(texts, states, color=False)
    hidden = length - FIRST_SHOWN - LAST_SHOWN
    noun = "token" if hidden == 1 else "tokens"
    assert (f"… {hidden:,} {noun}: {hidden:,} kept …" in shown) == (hidden > 0)
    assert shown.endswith(f" {length - 1}")
    assert tokens_text(texts, states, color=False, whole=True).count(" ") == length


@given(st.text())
def test_no_text_can_steer_a_terminal(text: str) -> None:
    """Prompts come from files, answers from models: escape sequences, bells, text that runs backwards."""
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    if text.isprintable():
        assert shown == text


def test_an_emoji_of_several_parts_stays_whole() -> None:
    assert printable("👩\u200d👧 \x1b[2J\u202e") == "👩\u200d👧 \\x1b[2J\\u202e"


def test_a_token_that_some_heads_evicted_says_how_many() -> None:
    assert [state_of(state) for state in STATES] == [RESTORED, "mostly evicted", "in part", KEPT, KEPT]
    assert state_of(TokenState(RESTORED, False, 0.5)) == "mostly evicted"
    assert state_of(TokenState(EVICTED, False, 1.0)) == EVICTED
