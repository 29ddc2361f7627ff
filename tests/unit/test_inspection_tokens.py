"""Tokens as text: their states, and how these are told apart."""

from __future__ import annotations

import re

import polars as pl

from kvlab.inspection.tokens import EVICTED, KEPT, RESTORED, SHARED, STYLES, token_states, tokens_html


def lost(*rows: tuple[int, int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=dict.fromkeys(["layer", "head", "position", "step"], pl.Int64), orient="row")


def test_token_states() -> None:
    evicted = lost((0, 0, 1, 0), (0, 1, 1, 0), (0, 0, 3, 0), (0, 1, 4, 2))
    at = lambda step: token_states(6, 5, evicted, shared=1, cached=3, step=step, heads=2)  # noqa: E731
    assert [token.state for token in at(0)] == [SHARED, EVICTED, RESTORED, KEPT, KEPT, KEPT]
    assert [token.gone for token in at(0)] == [0, 1, 0, 0.5, 0, 0]
    assert at(2)[4].gone == 0.5
    assert [token.generated for token in at(0)] == [False] * 5 + [True]


def test_the_text_is_told_apart_without_styles_too() -> None:
    states = token_states(4, 3, lost((0, 0, 2, 0)), shared=1, cached=2)
    html = tokens_html(["<a>", "b", "c", "d"], states, title="x & y")
    assert "&lt;a&gt;</b>" in html and ">b</i>" in html and ">c</s>" in html and ">d</span>" in html
    assert "x &amp; y" in html and "kept 1" in html and "evicted 1" in html


def test_no_two_states_differ_by_colour_alone() -> None:
    lines = [re.sub(r"rgba?\([^)]*\)|background:", "", style) for style in STYLES.values()]
    assert len(set(lines)) == len(STYLES) == 4
    html = tokens_html(["a", "b", "c"], token_states(3, 3, lost(), shared=1, cached=2))
    assert html.count("2px solid rgb(58") == 2 == html.count("2px dotted rgb(28")  # in the text and in the legend


def test_neighbours_of_one_state_are_one_element() -> None:
    html = tokens_html(["a", "b", "c"], token_states(3, 3, lost()))
    assert ">abc<" in html
