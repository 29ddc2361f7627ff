"""What the policies said: a frame with a row a request and policy, and a sheet to read with differences marked."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.results import Results, Row, row
from kvlab.results.answers import MAX_TEXT, storable
from kvlab.results.said import SHOWN_CHARS, answer_sheet, sheet_html
from kvlab.results.word_diff import ADDED, MAX_PAIRS, REMOVED, SAME, word_diff, words

ANY_TEXT = st.text(max_size=60) | st.sampled_from(
    ["a\0b\0", "line\u2028line\x85\x0b\x1c", "\U0001f600 é ü", "<ins>&amp;"]
)
WORDS = st.text(alphabet="ab .,\n#1猫é", max_size=40)


def said(policy: str, text: str, turn: int = 1, right: float | None = None, **more: object) -> list[Row]:
    where = {"turn": turn, "conversation": "c", "seed": 0, "n": 1, **more}
    rows = [row(policy, "agent", "text", len(words(text)), **where, text=text, question="Which code?", wanted="#417")]
    return rows if right is None else [*rows, row(policy, "agent", "accuracy", right, **where)]


def sheet_of(*rows: list[Row]) -> str:
    return sheet_html(answer_sheet(Results([one for part in rows for one in part], {}).frame()))


def plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


# -- the frame ---------------------------------------------------------------------------------------------------------


def test_answers_are_one_row_a_request_and_policy_with_their_grades() -> None:
    rows = [*said("full", "It is #417.", 1, 1), *said("full", "No.", 2), *said("knorm", "It is #9.", 1, 0)]
    rows += [row("full", "agent", "ttft_ms", 3, turn=1, conversation="c"), *said("knorm", "No.", 2)]
    frame = Results(rows, {}).answers()
    assert frame.columns == ["conversation", "turn", "policy", "question", "wanted", "text", "accuracy", "as_full",
                             "answer_tokens"]  # fmt: skip
    assert frame.select("turn", "policy", "text", "accuracy", "as_full").rows() == [
        (1, "full", "It is #417.", 1.0, True),
        (1, "knorm", "It is #9.", 0.0, False),
        (2, "full", "No.", None, True),
        (2, "knorm", "No.", None, True),
    ]


def test_answers_of_several_points_and_repeats_stay_apart() -> None:
    """Requests differ by seed, concurrency, length, model and workload; columns that differ are in the frame."""
    rows = [
        one
        for seed in (0, 1)
        for repeat in (0, 1)
        for one in said("full", f"{seed} {repeat}", seed=seed, repeat=repeat)
    ]
    frame = Results(rows, {}).answers()
    assert frame.select("seed", "repeat", "text").rows() == [(0, 0, "0 0"), (0, 1, "0 1"), (1, 0, "1 0"), (1, 1, "1 1")]
    for column, values in {"n": (1, 4), "tokens": (300, 900), "model": ("a", "b")}.items():
        frame = Results([one for value in values for one in said("full", "x", **{column: value})], {}).answers()
        assert frame[column].to_list() == list(values)


def test_without_full_nothing_is_compared_with_it() -> None:
    frame = Results([*said("knorm", "a"), *said("random", "b")], {}).answers()
    assert frame["as_full"].to_list() == [None, None]
    assert "With full among the policies" in plain(sheet_of(said("knorm", "a"), said("random", "b")))


def test_rows_without_answers_give_an_empty_frame_and_sheet() -> None:
    results = Results([row("full", "agent", "ttft_ms", 1, turn=1)], {})
    assert results.answers().is_empty() and repr(results.said()) == "no answers"
    assert "What it said" not in results._repr_html_()


@pytest.mark.parametrize("grade", ["accuracy", "hit_ratio"])
def test_every_grade_of_a_request_is_a_column(grade: str) -> None:
    rows = [*said("full", "a"), row("full", "agent", grade, 0.5, turn=1, conversation="c", seed=0, n=1)]
    assert Results(rows, {}).answers()[grade].to_list() == [0.5]


@settings(deadline=None, max_examples=12)
@given(ANY_TEXT, ANY_TEXT)
def test_any_text_comes_back_from_a_run_folder(text: str, question: str) -> None:
    import tempfile

    import zarr

    rows = [row("full", "own", "text", 1, turn=1, text=storable(text), question=storable(question, 50))]
    results = Results(rows, {})
    with tempfile.TemporaryDirectory() as folder:
        again = Results.load(results.save(folder))
        stored = zarr.open_group(Path(folder) / "record.zarr", mode="r")["rows/text"]
        assert isinstance(stored, zarr.Array) and list(stored[:]) == [storable(text)]  # type: ignore[arg-type]
    assert again.rows == rows and again.answers().equals(results.answers())


def test_half_of_a_surrogate_pair_and_very_long_questions_can_be_stored() -> None:
    assert storable("a\ud83db") == "a?b"
    long = storable("x" * 5000 + "What is it?", MAX_TEXT)
    assert len(long) < MAX_TEXT + 60 and long.endswith("What is it?") and "[… 1,011 characters …]" in long
    assert pl.DataFrame({"text": [storable("\udc00")]}).height == 1


# -- the difference ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(WORDS, WORDS)
def test_the_pieces_of_a_difference_are_both_texts(before: str, after: str) -> None:
    pieces = word_diff(before, after)
    assert "".join(text for kind, text in pieces if kind != REMOVED) == after
    assert "".join(text for kind, text in pieces if kind != ADDED) == before
    assert all(kind == SAME for kind, _ in pieces) == (before == after)


def test_differences_are_of_words_numbers_signs_and_unspaced_scripts() -> None:
    assert word_diff("The code is #417.", "The code is #419.")[1:3] == [(REMOVED, "417"), (ADDED, "419")]
    assert word_diff("我喜欢猫", "我喜欢狗") == [(SAME, "我喜欢"), (REMOVED, "猫"), (ADDED, "狗")]
    assert word_diff("ไทย ก", "ไทย ข")[-1] == (ADDED, " ข")
    assert word_diff("yes", "") == [(REMOVED, "yes")]


def test_answers_too_long_to_compare_are_one_difference_between_their_equal_ends() -> None:
    side = int(MAX_PAIRS**0.5) + 1
    pieces = word_diff("same " + "a b " * side + "end", "same " + "c d " * side + "end")
    assert [kind for kind, _ in pieces] == [SAME, REMOVED, ADDED, SAME]


# -- the sheet ---------------------------------------------------------------------------------------------------------


def test_policies_that_said_the_same_stand_together_and_full_comes_first() -> None:
    html = sheet_of(
        said("knorm", "It is #9.", right=0), said("full", "It is #417.", right=1), said("paged", "It is #417.", right=1)
    )
    assert html.count("<tr") == 2
    assert html.index("full</code>") < html.index("paged</code>") < html.index("knorm</code>")
    assert "2 of 3 right" in plain(html) and "✓ right" in html and "✗ wrong" in html


def test_differences_from_full_are_marked_by_elements_and_not_by_colour_alone() -> None:
    html = sheet_of(said("full", "It is #417."), said("knorm", "It is #9, sure."))
    assert re.search(r"<del style='[^']*line-through[^']*'>417</del>", html)
    assert re.search(r"<ins style='[^']*underline[^']*'>9, sure</ins>", html)
    assert not re.search(r"[;']color:(?!inherit)", html)  # letters keep the page's own colour, light or dark


def test_a_wholly_different_answer_is_not_mixed_with_the_words_it_lacks() -> None:
    html = sheet_of(said("full", "The code is four hundred."), said("knorm", "aye aye aye aye aye"))
    assert "<del" not in html.split("<tbody")[1] and ">aye aye aye aye aye</ins>" in html


def test_a_difference_of_spaces_alone_can_be_seen() -> None:
    html = sheet_of(said("full", "one"), said("knorm", "one \n"))
    assert ">·↵\n</ins>" in html


def test_a_distance_from_full_is_no_grade_of_an_answer() -> None:
    rows = said("full", "a")
    rows += [row("full", "agent", name, 0.0, turn=1, conversation="c", seed=0, n=1) for name in ("tool_flip", "top1")]
    assert "wrong" not in sheet_of(rows)


def test_an_empty_answer_says_so() -> None:
    assert "<i" in sheet_of(said("full", "a"), said("knorm", " \n")) and "nothing" in sheet_of(said("knorm", ""))


def test_long_answers_are_folded_and_the_fold_says_whether_it_differs() -> None:
    long = "word " * 200
    html = sheet_of(said("full", long), said("knorm", long + "other"))
    assert html.count("more characters</summary>") == 1 and html.count("more characters, with differences") == 1
    body = plain(re.sub(r"<summary.*?</summary>", "", html.split("<tbody")[1]))
    assert body.count("word") == 400, "nothing is lost in the fold"
    assert "more characters" not in sheet_of(said("full", "x" * (SHOWN_CHARS + 5)))


def test_a_long_question_shows_its_end_first() -> None:
    rows = [row("full", "own", "text", 1, turn=1, text="a", question="filler " * 300 + "\n\nWhat is <it>?")]
    html = sheet_html(answer_sheet(Results(rows, {}).frame()))
    head = html[html.index("<summary>") : html.index("</summary>")]
    assert "What is &lt;it&gt;?" in head and len(plain(head)) < 200
    assert "characters before …" in html


def test_of_many_questions_those_with_differences_are_shown_first_and_the_rest_counted() -> None:
    rows = [one for turn in range(1, 31) for one in said("full", "a", turn)]
    rows += [one for turn in range(1, 31) for one in said("knorm", "b" if turn > 28 else "a", turn)]
    sheet = Results(rows, {}).said(most=5)
    assert [question.where for question in sheet.shown] == [
        "c, turn 1",
        "c, turn 2",
        "c, turn 3",
        "c, turn 29",
        "c, turn 30",
    ]
    assert "Shown are 5 of 30 questions" in sheet._repr_html_()


def test_the_sheet_in_a_terminal_has_question_wanted_and_answers() -> None:
    text = repr(Results([*said("full", "It is #417.", right=1), *said("knorm", "", right=0)], {}).said())
    assert text.splitlines() == [
        "c, turn 1: Which code?",
        "  wanted: #417",
        "  full ✓ right: It is #417.",
        "  knorm ✗ wrong: nothing",
    ]


@settings(deadline=None, max_examples=30)
@given(ANY_TEXT, ANY_TEXT)
def test_no_answer_becomes_markup(full: str, other: str) -> None:
    html = sheet_of(said("full", storable(full)), said("knorm<b>", storable(other)))
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {"div", "details", "summary", "table", "tbody", "tr", "td", "span", "code", "b", "ins", "del", "i"}


def test_results_in_a_notebook_have_the_answers_to_unfold() -> None:
    html = Results([*said("full", "It is #417."), row("full", "agent", "ttft_ms", 1, turn=1)], {})._repr_html_()
    assert "<summary>What it said</summary>" in html and "It is #417." in html and "<script" not in html
