"""`needle`: recipes, lengths, depths, the question's place, grades; every wrong setting gets one line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.errors import RunError, WorkloadError
from kvlab.experiments.config import read_experiment
from kvlab.experiments.prompts import Prompts, tokens_before
from kvlab.models import LoadedModel
from kvlab.policies import Policy, Scorer
from kvlab.policies.slots import known_modules
from kvlab.workloads import load_workload
from kvlab.workloads.haystack import NOISE
from kvlab.workloads.needle import QUESTIONS, TASKS, Needle, NeedleRequest

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = ("single", "multikey", "multivalue", "multiquery")
SECRET = re.compile(r"The secret number of (\S+) is (\d{7})\.")


def only(spec: str, **options: Any) -> NeedleRequest:
    [request] = load_workload(spec, **options).requests()
    assert isinstance(request, NeedleRequest)
    return request


def text(request: NeedleRequest) -> str:
    return request.messages[-1]["content"]


@pytest.mark.parametrize(("task", "keys", "values"), [("single", 1, 1), ("multikey", 4, 1), ("multivalue", 1, 4)])
def test_recipe_hides_so_many_keys_and_asks_for_one(task: str, keys: int, values: int) -> None:
    for seed in range(5):
        request = only(f"needle:{task}", seed=seed)
        found = SECRET.findall(text(request))
        assert len(found) == keys * values and len({name for name, _ in found}) == keys
        asked = {value for name, value in found if f" {name} " in request.question}
        assert asked == set(request.values) and len(request.values) == values


def test_recipe_of_several_queries_asks_for_all_keys() -> None:
    request = only("needle:multiquery")
    found = dict(SECRET.findall(text(request)))
    assert len(found) == 4 and all(name in request.question for name in found)
    assert set(found.values()) == set(request.values)


def test_tracked_variables_are_assigned_before_they_are_passed_on() -> None:
    for seed in range(20):
        request = only("needle:vt", seed=seed)
        lines = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text(request))
        known = {lines[0][1]}
        assert lines[0][1] in request.question
        for name, source in lines:
            assert source in known
            known.add(name)
        assert known - {lines[0][1]} == set(request.values) and len(request.values) == 5


@given(tokens=st.integers(500, 15_000), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_common_words_are_the_most_frequent_of_the_list_at_any_length(tokens: int, seed: int) -> None:
    request = only("needle:cwe", tokens=tokens, seed=seed)
    listed = Counter(re.findall(r"\d+\. (\w+)", text(request)))
    common = listed.most_common(10)
    assert {word for word, _ in common} == set(request.values)
    rare = listed.most_common(11)[-1][1]
    assert min(count for _, count in common) >= 2 * rare and max(count for _, count in common) <= 30


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [700, 2000])
def test_prompt_has_the_length_asked_for(task: str, tokens: int, bundled: LoadedModel) -> None:
    request = only(f"needle:{task}", tokens=tokens, count=lambda some: len(bundled.encode(some)))
    assert len(Prompts(bundled, [request]).turn(request).prompt) == pytest.approx(tokens, rel=0.1)


@given(depth=st.floats(0, 1), task=st.sampled_from(HIDDEN), seed=st.integers(0, 5))
@settings(max_examples=30)
def test_needle_that_is_asked_for_lies_at_its_depth(depth: float, task: str, seed: int) -> None:
    request = only(f"needle:{task},depth={depth!r}", seed=seed, tokens=2000)
    body = text(request)
    for value in request.values:
        assert body.index(value) / len(body) == pytest.approx(depth, abs=0.12)


def test_depth_is_drawn_for_each_text_without_one() -> None:
    requests = load_workload("needle", n=30).requests()
    places = sorted(text(one).index(one.values[0]) / len(text(one)) for one in requests)  # type: ignore[attr-defined]
    assert places[0] < 0.25 and places[-1] > 0.75


@pytest.mark.parametrize("task", TASKS)
def test_text_is_the_same_wherever_the_question_stands(task: str) -> None:
    after, before, unknown = (only(f"needle:{task},question={place}", tokens=1000) for place in QUESTIONS)
    assert text(after) == text(unknown) and sorted(text(after).split("\n")) == sorted(text(before).split("\n"))
    assert text(after).endswith(f"\n{after.question}") and not text(before).endswith(before.question)
    assert (after.unseen, before.unseen, unknown.unseen) == ("", "", unknown.question)


@given(seed=st.integers(0, 50), task=st.sampled_from(sorted(TASKS)))
@settings(max_examples=15)
def test_no_token_of_the_unseen_question_is_before_the_eviction(bundled: LoadedModel, seed: int, task: str) -> None:
    request = only(f"needle:{task},question=none", seed=seed, tokens=700)
    turn = Prompts(bundled, [request]).turn(request)
    assert turn.compress_after is not None
    head, tail = (
        bundled.decode(part) for part in (turn.prompt[: turn.compress_after], turn.prompt[turn.compress_after :])
    )
    assert request.question in tail and request.question[:12] not in head
    assert len(tail) < len(request.question) + 80
    assert Prompts(bundled, [request]).turn(only(f"needle:{task}", tokens=700)).compress_after is None


@pytest.mark.parametrize("end", ["Ask ", "?", "日本語は?", "a\n\nb", "twice twice"])
def test_tokens_before_any_text_hold_none_of_it(end: str, bundled: LoadedModel) -> None:
    prompt = bundled.encode(f"One and twice two.\n{end}\nthe end")
    count = tokens_before(bundled, prompt, end)
    assert end in bundled.decode(prompt[count:]) and end not in bundled.decode(prompt[count + 1 :])


def test_text_that_a_template_changes_is_refused(bundled: LoadedModel) -> None:
    with pytest.raises(RunError, match="does not show"):
        tokens_before(bundled, bundled.encode("nothing of it"), "a question")


@pytest.mark.parametrize("task", TASKS)
def test_grade_is_the_share_of_the_wanted_values_in_the_answer(task: str) -> None:
    request = only(f"needle:{task}", tokens=1000)
    assert request.grade(request.wanted) == request.grade(f"I say {request.wanted.upper()}!") == {"accuracy": 1.0}
    assert request.grade("I do not know.") == request.grade("") == {"accuracy": 0.0}
    half = request.values[: len(request.values) // 2]
    assert request.grade(" and ".join(half)) == {"accuracy": len(half) / len(request.values)}


# -- haystacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("First one. Second\none! Third?", ["First one.", "Second one!", "Third?"]),
        ("no full stop at all " * 300, ["no full stop at all no"]),
        ("何もない。次の文。", ["何もない。", "次の文。"]),
        ("x" * 5000, ["x" * 200]),
    ],
)
def test_own_text_is_a_haystack_of_the_length_asked_for(content: str, shown: list[str], tmp_path: Path) -> None:
    """For prose, text without full stops, text without spaces, one endless word."""
    path = tmp_path / "my, text.txt"
    path.write_text(content, encoding="utf-8")
    request = only(f"needle:single,haystack={path},depth=1", tokens=800)
    assert all(part in text(request) for part in shown) and not any(noise in text(request) for noise in NOISE)
    assert SECRET.search(text(request)) and request.values[0] in text(request)
    by_characters = only(f"needle:single,haystack={path}", tokens=3000, count=len)
    assert len(text(by_characters)) == pytest.approx(3000, rel=0.1)


def test_other_needles_never_name_the_key_that_is_asked_for() -> None:
    for seed in range(20):
        request = only("needle:single,haystack=needles", seed=seed)
        found = SECRET.findall(text(request))
        assert len(found) > 20
        assert [value for name, value in found if f" {name} " in request.question] == list(request.values)


def test_made_sentences_differ() -> None:
    sentences = text(only("needle:single,haystack=sentences")).split(". ")
    assert len(set(sentences)) > 0.9 * len(sentences)


# -- names and settings -----------------------------------------------------------------------------------------------


def test_name_of_the_workload_is_its_spec_without_defaults() -> None:
    for spec in ("needle:single", "needle:vt,question=none", "needle:multikey,depth=0.5,haystack=sentences"):
        assert load_workload(spec).name == spec
    assert load_workload("needle").name == load_workload("needle:single,question=after").name == "needle:single"
    assert Needle("single", depth=0.25, question="none").name == "needle:single,depth=0.25,question=none"


@pytest.mark.parametrize(
    ("spec", "options", "told"),
    [
        ("needle:double", {}, "needle:single, needle:multikey"),
        ("needle:single,place=3", {}, "no option 'place'"),
        ("needle:single,tokens=300", {}, "tokens as an option of its own"),
        ("needle:single,depth=2", {}, "from 0 (the beginning) to 1"),
        ("needle:single,depth=half", {}, "depth=half"),
        ("needle:single,depth=nan", {}, "depth=nan"),
        ("needle:vt,depth=0.5", {}, "leave depth out"),
        ("needle:single,question=never", {}, "question=after, question=before, question=none"),
        ("needle:single,haystack=no/such/file.txt", {}, "No such file"),
        ("needle:cwe,haystack=sentences", {}, "leave haystack out"),
        ("needle:multiquery", {"tokens": 60}, "write tokens="),
        ("needle:cwe", {"tokens": 200}, "write tokens="),
        ("needle:cwe", {"tokens": 90_000}, "write tokens="),
        ("needle:single", {"tokens": 0}, "tokens must be"),
        ("needle:single", {"turns": 3}, "turns applies to"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(spec: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(WorkloadError) as error:
        load_workload(spec, **options).requests()
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"  \n ", b"\xff\xfe\x00"])
def test_haystack_without_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match="haystack="):
        load_workload(f"needle:single,haystack={path}").requests()


@pytest.mark.parametrize("spec", ["needle:cwe", "needle:multiquery"])
def test_length_that_an_error_names_is_accepted(spec: str) -> None:
    with pytest.raises(WorkloadError) as error:
        load_workload(spec, tokens=30).requests()
    [tokens] = re.findall(r"write tokens=(\d+)", str(error.value))
    assert load_workload(spec, tokens=int(tokens)).requests()


NOT_MEASURED = {"dms", "kvzip", "oracle", "sepllm", "triattention"}
"""Methods that no saved figure has yet, as docs/limits.md says."""
LINES = {"knorm", "random", "snapkv"}
"""Methods that have a line over budgets; the others have marks at two budgets."""


def test_saved_experiments_have_every_eviction_method_with_the_question_known_and_unknown() -> None:
    """A method that is added later must be added there, or be named as not measured."""
    own = {
        name for name, cls in known_modules().items() if cls.__module__.startswith("kvlab.") and issubclass(cls, Scorer)
    }
    assert own >= NOT_MEASURED
    known, unknown = "needle:single", "needle:single,question=none"
    for name, tokens, workload, methods, seeds in (
        ("needle", 1000, known, LINES | {"rotating"}, 4),
        ("needle_unknown", 1000, unknown, LINES, 4),
        ("needle_long", 2500, known, LINES, 4),
        ("needle_long_unknown", 2500, unknown, LINES, 4),
        ("methods", 1000, known, own - NOT_MEASURED, 2),
        ("methods_unknown", 1000, unknown, own - NOT_MEASURED, 2),
    ):
        cells = read_experiment(ROOT / "experiments" / f"{name}.toml").cells()
        assert methods | {"full"} == {Policy.parse(cell.run.policy).retention.name for cell in cells}
        of_full = [cell.run for cell in cells if cell.policy == "full"]
        assert {(run.workload, run.tokens) for run in of_full} == {(workload, tokens)}
        assert sum(run.n for run in of_full) == 10 * seeds and len({run.seed for run in of_full}) == seeds
