"""The verdict: best at what, from the rows; honest about ties, ranges, chance and void accuracy."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.results import Results, Row, mark_void, row
from kvlab.results.standing import sign_test, standing
from kvlab.results.verdict import verdict

Measured = dict[str, object]


def run(policy: str, right: str = "", ttft: float | list[float] = 100, held: float = 8e6, turns: int = 1) -> list[Row]:
    """Rows of a policy: `right` has a 1 or 0 for each question, `ttft` a time for each repeat."""
    made = []
    for repeat, took in enumerate(ttft if isinstance(ttft, list) else [ttft]):
        for i, grade in enumerate(right or "-"):
            at = {"turn": turns, "conversation": f"c{i}", "repeat": repeat, "seed": 0}
            made.append(row(policy, "own", "ttft_ms", took, **at))
            made.append(row(policy, "own", "kv_bytes_live", held, **at))
            if grade in "01":
                made.append(row(policy, "own", "accuracy", int(grade), **at))
    return made


def judge(*runs: list[Row], **provenance: object) -> tuple[str, str]:
    found = verdict(Results(list(itertools.chain(*runs)), {}).frame(), provenance)
    return found.sentence, " ".join(found.notes)


def test_one_sentence_names_who_is_best_at_what() -> None:
    right = "1" * 24
    sentence, notes = judge(
        run("full", right, [500, 510], turns=5),
        run("paged", right, [25, 26], turns=5),
        run("quantized:bits=4", right, [520, 530], 1.2e6, turns=5),
        run("random", "0" * 24, [480, 490], 0.5e6, turns=5),
    )
    assert sentence == (
        "Of 4 policies, `full`, `paged` and `quantized:bits=4` answer best (24 of 24 right); of these, "
        "`quantized:bits=4` holds the least KV (1.2 MB, 0.15 times `full`'s) and `paged` has its first token soonest "
        "at turn 5 (25.5 ms, 0.05 times `full`'s)."
    )
    assert notes == "With less KV, `random` comes nearest: 0 of 24 right with 500 kB, 0.062 times `full`'s."


def test_times_whose_ranges_meet_are_no_difference() -> None:
    sentence, notes = judge(run("full", "11", [100, 140]), run("paged", "11", [90, 120]))
    assert "no time to first token can be told from another" in sentence and "repeats" not in notes
    sentence, _ = judge(run("full", "11", [100, 140]), run("paged", "11", [90, 99]))
    assert "`paged` has its first token soonest (94.5 ms" in sentence


def test_single_times_must_be_well_apart_and_the_note_says_that_they_are_single() -> None:
    sentence, notes = judge(run("full", "11", 100), run("paged", "11", 95))
    assert "no time to first token can be told from another" in sentence
    assert "one measurement a policy; --repeats 3" in notes
    assert "`paged` has its first token soonest" in judge(run("full", "11", 100), run("paged", "11", 50))[0]


def test_few_questions_cannot_tell_policies_apart_and_many_can() -> None:
    sentence, notes = judge(run("full", "11111"), run("snapkv", "11100"))
    best = "Of 2 policies, `full` answers best (5 of 5 right); "
    assert sentence == best + "it holds 8.0 MB of KV and has its first token after 100 ms."
    assert "5 questions cannot tell `snapkv` (3) from the best: the difference may be chance." in notes
    sentence, notes = judge(run("full", "1" * 20), run("snapkv", "1" * 8 + "0" * 12))
    assert "`full` answers best (20 of 20 right)" in sentence and "cannot tell" not in notes


def test_a_repeat_of_a_question_is_not_a_further_question() -> None:
    found = standing(Results([*run("full", "11111", [1] * 9), *run("knorm", "11100", [1] * 9)], {}).frame())
    assert found is not None and found.questions == 5 and (found.best, found.near) == (("full",), ("knorm",))
    assert found.score("full") == "5 of 5" and found.score("knorm") == "3 of 5"


def test_void_accuracy_ranks_nobody() -> None:
    rows = mark_void([*run("full", "0000", 100), *run("knorm", "0100", 50, 1e6)])
    sentence, notes = judge(rows)
    assert sentence.startswith(
        "Of 2 policies, accuracy is void, as `full` itself fails the task; `knorm` holds the least"
    )
    assert "right" not in sentence + notes


def test_where_full_is_right_a_policy_with_nothing_right_is_bad_and_not_void() -> None:
    sentence, _ = judge(mark_void([*run("knorm", "0000"), *run("random", "0000")], run("full", "1111")))
    assert "all have 0 of 4 answers right" in sentence


def test_equal_policies_are_not_ranked() -> None:
    sentence, notes = judge(run("full", "11", [100, 101]), run("paged", "11", [100, 101]))
    assert sentence == (
        "Of 2 policies, all have 2 of 2 answers right; all hold the same KV (8.0 MB) and no time to first token can be "
        "told from another."
    )
    assert notes == ""


def test_without_full_nothing_is_compared_with_it() -> None:
    sentence, _ = judge(run("paged", "11", 20), run("tiered", "11", 100))
    assert "full" not in sentence and "`paged` has its first token soonest (20.0 ms)" in sentence


def test_one_policy_alone_is_not_compared() -> None:
    assert judge(run("paged", "10", 20))[0] == (
        "Only `paged` ran: 1 of 2 answers right, the first token after 20.0 ms, 8.0 MB of live KV."
    )


def test_rows_without_grades_are_judged_by_time_and_bytes() -> None:
    sentence, _ = judge(run("full", "", 100), run("rotating:window=64", "", 50, 1e6))
    assert sentence.startswith("Of 2 policies, `rotating:window=64` holds the least KV (1.0 MB, 0.12 times `full`'s)")


def test_ten_policies_are_counted_where_names_would_not_be_read() -> None:
    runs = [run(f"snapkv:budget=0.{i}", "1" * 9, 100 + i) for i in range(1, 10)]
    sentence, _ = judge(run("full", "1" * 9), run("knorm", "0" * 9), *runs)
    assert "`full`, `snapkv:budget=0.1`, `snapkv:budget=0.2` and 7 others answer best" in sentence


def test_the_note_of_a_busy_machine_is_part_of_the_verdict() -> None:
    notes = judge(run("full", "1"), run("paged", "1"), other_load={"full": [0.5], "paged": [0.6]})[1]
    assert "The machine was busy throughout: other programs took up to 60% of its CPU time" in notes


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("01", min_size=4, max_size=4), min_size=2, max_size=5))
def test_the_best_are_never_worse_than_one_outside_them(grades: list[str]) -> None:
    """Whatever the grades: the best have the highest sum, and who is outside, near or not, has a lower one."""
    rows = [one for i, right in enumerate(grades) for one in run(f"p{i}", right)]
    found = standing(Results(rows, {}).frame())
    assert found is not None
    top = max(found.right.values())
    assert all(found.right[policy] == top for policy in found.best) and not set(found.best) & set(found.near)
    assert all(found.right[policy] < top for policy in found.right if policy not in found.best)


@pytest.mark.parametrize(
    ("better", "worse", "chance"), [(0, 0, 1), (5, 0, 0.0625), (6, 0, 0.03125), (3, 3, 1), (9, 1, 22 / 1024)]
)
def test_sign_test_is_exact(better: int, worse: int, chance: float) -> None:
    assert sign_test(better, worse) == pytest.approx(chance)
