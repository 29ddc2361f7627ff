"""Data of one's own as a workload: every form gives the same requests, and what cannot be read is told by its place."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlab.errors import UserCodeError, WorkloadError
from kvlab.experiments.config import read_experiment
from kvlab.workloads import Own, Workload, WorkloadRequest, as_workload, load_workload
from kvlab.workloads.base import assistant, system, user
from kvlab.workloads.registry import file_of, takes_all

ITEMS = [
    {"context": "Mira has a cat.\nTano has none.", "question": "Who has a cat?", "answer": "Mira"},
    {"context": "Tano is 7.", "question": "How old is Tano?", "answer": "7"},
    {"context": None, "question": "And Mira?", "answer": None},
]
TALK = [system("Be brief."), user("One?"), assistant("Two."), user("Three?")]
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1, "y": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class PandasFrame:
    """What pandas offers and kvlab uses of it, with NaN for what is missing."""

    def __init__(self, items: list[dict[str, Any]], columns: list[str] | None = None) -> None:
        self.items = items
        self.columns = columns or list(items[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{key: math.nan if value is None else value for key, value in item.items()} for item in self.items]


class ArrowTable:
    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items, self.columns = items, [object()]

    def to_pylist(self) -> list[dict[str, Any]]:
        return self.items


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def forms(items: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The same items in every form that a workload takes."""
    lines = write(folder / "lines.jsonl", *items)
    packed = folder / "packed.jsonl.xz"
    packed.write_bytes(lzma.compress(lines.read_bytes()))
    marked = folder / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + lines.read_bytes().replace(b"\n", b"\r\n"))
    return {
        "dicts": items,
        "tuple": tuple(items),
        "generator": (item for item in items),
        "polars": pl.DataFrame(items),
        "pandas": PandasFrame(items),
        "arrow": ArrowTable(items),
        "path": lines,
        "text of a path": str(lines),
        "spec": f"own:{lines}",
        "array": str(write(folder / "array.json", json.dumps(items, indent=2))),
        "packed": packed,
        "from Windows": marked,
    }


def test_every_form_of_questions_gives_the_same_requests(tmp_path: Path) -> None:
    given_forms = forms(ITEMS, tmp_path)
    made = {name: as_workload(data).requests() for name, data in given_forms.items()}
    assert all(requests == made["dicts"] for requests in made.values())
    first, second, third = made["dicts"]
    assert first.messages == (user("Mira has a cat.\nTano has none.\n\nWho has a cat?"),)
    assert (first.question, first.wanted, first.reference) == ("Who has a cat?", "Mira", assistant("Mira"))
    assert [one.conversation for one in made["dicts"]] == ["own-0", "own-1", "own-2"]
    assert first.grade("It is Mira.") == {"accuracy": 1.0, "contains": 1.0}
    assert second.grade("17") == {"accuracy": 0.0, "contains": 0.0}
    assert third.messages == (user("And Mira?"),) and third.grade("8") == {}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"question": TEXT, "answer": st.none() | TEXT, "context": st.none() | TEXT}), min_size=1
    )
)
def test_any_texts_are_the_same_from_a_file_a_frame_and_a_list(tmp_path: Path, items: list[dict[str, Any]]) -> None:
    """Whatever characters a text has, ends of lines of other systems among them."""
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    requests = as_workload(items).requests()
    assert requests == as_workload(path).requests()
    schema = dict.fromkeys(items[0], pl.String)
    assert requests == as_workload(pl.DataFrame(items, schema=schema)).requests()
    assert [one.question for one in requests] == [item["question"] for item in items]
    assert all((one.reference is None) == (item["answer"] is None) for one, item in zip(requests, items, strict=True))


def test_answers_may_be_several_numbers_or_anything(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = [
        {"question": "?", "answers": ["four", "4"]},
        {"question": "?", "answers": {"text": ["four", "4"], "answer_start": [3, 9]}},
        {"question": "?", "answer": ["four", 4]},
        {"question": "?", "answer": 4},
        {"question": "?", "answer": np.array([4, 5])},
        {"question": "?", "answer": np.int64(4)},
        {"question": "?", "answers": np.array(["4"])},
        {"question": "?", "answers": "4"},
    ]
    requests = as_workload(items).requests()
    assert [one.grade("It is 4.")["contains"] for one in requests] == [1.0] * len(items)
    assert [one.wanted for one in requests] == ["four or 4"] * 3 + ["4", "4 or 5", "4", "4", "4"]
    none: list[dict[str, Any]] = [{"question": "?", key: []} for key in ("answer", "answers")]
    none += [{"question": "?", "answers": {"text": [], "answer_start": []}}, {"question": "?", "answer": math.nan}]
    assert [one.grade("4") for one in as_workload(none).requests()] == [{}] * 4


def within(text: str, wanted: Any) -> float:
    said = re.search(r"\d+", text)
    return float(said is not None and wanted["least"] <= int(said[0]) <= wanted["most"])


def test_any_value_is_an_answer_for_a_metric_of_ones_own() -> None:
    items = [{"question": "How many?", "answer": {"least": 3, "most": 5}}]
    (request,) = as_workload(items, within).requests()
    assert request.grade("It is 4.") == {"accuracy": 1.0, "within": 1.0} != request.grade("9")
    assert request.wanted == '{"least": 3, "most": 5}'
    assert as_workload(items).requests()[0].grade("4 #417") == {}


def test_conversations_are_asked_for_every_answer_and_for_the_one_that_is_missing(tmp_path: Path) -> None:
    as_lists = [TALK, [user("Hello.")]]
    as_dicts = [{"messages": TALK, "tools": [TOOL], "id": "first"}, {"messages": [user("Hello.")], "id": 2}]
    numbered, named = ["own-0", "own-0", "own-1"], ["first", "first", "2"]
    for data, names in (
        (as_lists, numbered),
        (write(tmp_path / "lists.jsonl", *as_lists), numbered),
        (as_dicts, named),
        (write(tmp_path / "dicts.jsonl", *as_dicts), named),
    ):
        first, second, third = as_workload(data).requests()
        assert (first.messages, first.reference, first.turn) == (tuple(TALK[:2]), TALK[2], 1)
        assert (second.messages, second.reference, second.turn) == (tuple(TALK), None, 2)
        assert third.messages == (user("Hello."),) and third.grade("x") == first.grade("x") == {}
        assert [one.conversation for one in (first, second, third)] == names
    assert as_workload(TALK).requests() == as_workload([TALK]).requests()
    assert len(as_workload([TALK, TALK], turns=1).requests()) == 2
    assert [len(one.tools) for one in as_workload(as_dicts).requests()] == [1, 1, 0]


def test_conversations_and_transcripts_are_graded_by_metrics(tmp_path: Path) -> None:
    """Any right answer there is can be compared: text, and a call in whatever way the model wrote its JSON."""
    path = write(tmp_path / "talk.jsonl", [*TALK, {"role": "assistant", "content": None, "tool_calls": [CALL]}])
    for given_data in (f"transcript:{path}", path, json.loads(path.read_text())):
        text, call = as_workload(given_data, ["exact_match", "f1"]).requests()
        assert text.grade("two!") == {"accuracy": 1.0, "exact_match": 1.0, "f1": 1.0}
        assert text.grade("two three")["f1"] == pytest.approx(2 / 3)
        said = '<tool_call>\n{"name": "add", "arguments": {"y": 2, "x": 1}}\n</tool_call>'
        assert call.grade(said)["exact_match"] == 1 > call.grade(said.replace("2", "3"))["exact_match"]
        assert call.grade("I add.")["exact_match"] == 0
    (first, second) = as_workload(TALK, "f1").requests()
    assert first.grade("Two.")["accuracy"] == 1 and second.grade("Two.") == {}


def test_a_metric_grades_any_workload_in_place_of_its_own_way() -> None:
    class Odd(WorkloadRequest):
        def grade(self, text: str) -> dict[str, float]:
            return {"accuracy": 0.0}

    class Oddities(Workload):
        def requests(self) -> list[WorkloadRequest]:
            return [Odd("odd", 1, (user("?"),), (), assistant("Yes."), "answer", 8)]

    assert as_workload(Oddities()).requests()[0].grade("yes") == {"accuracy": 0.0}
    assert as_workload(Oddities(), "exact_match").requests()[0].grade("yes")["accuracy"] == 1
    plain, graded = load_workload("retrieval", tokens=200), as_workload("retrieval", ["f1"], tokens=200)
    (asked,) = plain.requests()
    assert graded.requests()[0].grade(asked.wanted) == {"accuracy": 1.0, "f1": 1.0}
    assert graded.name == plain.name


def test_an_item_may_set_the_system_prompt_the_name_and_the_length_of_the_answer() -> None:
    item = {"id": "q1", "system": "Be brief.", "question": "?", "max_tokens": 5, "source": "a column of one's own"}
    first, second = as_workload([item, {"question": "?"}]).requests()
    assert first.messages == (system("Be brief."), user("?"))
    assert (first.conversation, first.max_tokens, second.max_tokens) == ("q1", 5, 64)
    assert Own([{"question": "?"}], max_tokens=9).requests()[0].max_tokens == 9
    told = as_workload([{"messages": TALK, "system": "Again."}]).requests()[0]
    assert told.messages[:2] == (system("Again."), system("Be brief."))


def test_all_questions_are_asked_unless_a_number_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "many.jsonl", *({"question": f"{i}?"} for i in range(7)))
    assert len(load_workload(str(path)).requests()) == 7
    assert len(load_workload(f"own:{path}", n=1).requests()) == 1
    assert len(as_workload(path, n=3).requests()) == 3
    assert takes_all(str(path)) and takes_all("own:x") and not takes_all("agent") and not takes_all("transcript:x")
    assert file_of(str(path)) == file_of(f"transcript:{path}") == path and file_of("agent") is None


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (["What is it?", "And this?"], "item 1: 'What is it?' is str; expected questions such as"),
        ([], "there is no question in this list; expected questions such as"),
        ({}, "item 1: there is no 'question' among nothing"),
        (pl.DataFrame(), "there is no question in this DataFrame"),
        (3, "3 is no workload"),
        (b"bytes", "is no workload"),
        ([None], "item 1: None is NoneType"),
        ([{"question": "?"}, {"text": "?", "label": 1}], "item 2: there is no 'question' among 'text', 'label'"),
        ([{"question": None, "answer": "x"}], "item 1: there is no 'question' among 'answer'"),
        ([{"question": "?", "Answer": "x"}], "item 1: 'Answer' is not read; rename it to 'answer'"),
        (pl.DataFrame({"Question ": ["?"]}), "item 1: 'Question ' is not read; rename it to 'question'"),
        ([{"question": ["?"]}], "item 1: question is ['?']; write text"),
        ([{"question": "  "}], "item 1: question is '  '; write text"),
        ([{"question": "?", "context": ["a", "b"]}], "item 1: context is ['a', 'b']; write text"),
        ([{"question": "?", "answer": "a", "answers": ["a"]}], "item 1: there are both 'answer' and 'answers'"),
        ([{"question": "?", "answers": 4}], "item 1: answers is 4; write a list of texts"),
        ([{"question": "?", "max_tokens": 0}], "item 1: max_tokens must be a whole number of at least 1"),
        ([{"question": "?", "tools": ["add"]}], "item 1: tools must be a list of"),
        ([{"question": "?", "id": "a"}] * 2, "item 2: the id 'a' is that of item 1 too"),
        ([{"question": "?", "id": "own-1"}, {"question": "?"}], "item 2: the id 'own-1' is that of item 1 too"),
        (PandasFrame([{"question": "?"}], ["question", "id", "id"]), "two columns 'id'"),
        ([{"messages": []}], "item 1: expected questions"),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "item 1: message 1 has role 'robot'"),
        (
            [assistant("Hello.")],
            "the conversation: the conversation begins with assistant; begin it with a user message",
        ),
        ([system("Be brief.")], "the conversation begins with nothing"),
        ([{"role": "user"}], "the conversation: message 1 (user) has no content"),
        (Own, "Own is a class: write Own()"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line_with_its_place(data: Any, told: str) -> None:
    with pytest.raises(WorkloadError) as error:
        as_workload(data)
    assert told in str(error.value) and "\n" not in str(error.value)


GOOD = {"question": "?", "answer": "x"}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], ": nothing in it; expected questions"),
        (["", "  "], ": nothing in it"),
        ([GOOD, GOOD, '{"question": "?",'], ":3: broken JSON"),
        ([GOOD, "", "question,answer"], ":3: broken JSON"),
        (
            [GOOD, '{"question": "?", "answer": "a", "answer": "b"}'],
            ":2: broken JSON (the key 'answer' is there twice)",
        ),
        (["[", json.dumps(GOOD) + ",", '{"question": "?", "question": "!"}]'], ":3: broken JSON (the key 'question'"),
        ([GOOD, '"What is it?"'], ":2: 'What is it?' is str; expected questions"),
        (["[", json.dumps(GOOD) + ",", '{"answer": "x"}]'], ":3: there is no 'question' among 'answer'"),
        ([GOOD, {"question": "?", "id": "own-0"}], ":2: the id 'own-0' is that of "),
    ],
)
def test_a_broken_file_is_told_with_its_line(lines: list[Any], told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "broken.jsonl", *lines)
    for spec in (str(path), f"own:{path}", path):
        with pytest.raises(WorkloadError) as error:
            as_workload(spec)
        assert str(error.value).startswith(f"{path}{told}") and "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none.jsonl: No such file or directory; give a .jsonl"):
        load_workload(str(tmp_path / "none.jsonl"))
    with pytest.raises(WorkloadError, match=r"unknown workload 'retreival'; choose one of .*, or a .jsonl file"):
        load_workload("retreival")
    with pytest.raises(WorkloadError, match="own needs an argument: write own:FILE"):
        load_workload("own")
    with pytest.raises(WorkloadError, match="tokens applies to"):
        load_workload("own:x.jsonl", tokens=9)


def raises(text: str, wanted: str) -> float:
    raise KeyError(wanted)


@pytest.mark.parametrize(
    ("data", "metric", "error", "told"),
    [
        ([GOOD], raises, UserCodeError, "metric 'raises' raised KeyError: 'x' at "),
        ([GOOD], lambda *_: "1", UserCodeError, "metric 'own' returned '1'"),
        ([GOOD], lambda *_: 2, UserCodeError, "metric 'own' returned 2"),
        ([GOOD], lambda *_: math.nan, UserCodeError, "metric 'own' returned nan"),
        ([{"question": "?"}], "f1", WorkloadError, "own has no right answer that f1 could compare"),
        ([user("?")], ["f1", raises], WorkloadError, "own has no right answer that f1 and raises could compare"),
        (
            [GOOD, {"question": "?", "answer": {"a": 1}}],
            "f1",
            WorkloadError,
            "f1 compares texts, and the answer of own-1",
        ),
    ],
)
def test_a_metric_that_cannot_work_is_refused_before_a_model_runs(
    data: Any, metric: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error) as raised:
        as_workload(data, metric)
    assert told in str(raised.value)


def test_an_experiment_file_takes_the_same_data_and_metrics(tmp_path: Path) -> None:
    data = write(tmp_path / "mine.jsonl", GOOD, GOOD)
    file = tmp_path / "mine.toml"
    file.write_text(f'workload = "{data}"\nmetrics = ["f1", "contains"]\npolicies = ["full", "paged"]\n')
    cells = read_experiment(file).cells()
    assert [(cell.run.workload, cell.run.metrics, cell.run.n) for cell in cells] == [
        (str(data), ("f1", "contains"), None)
    ] * 2
    assert all(cell.content()["metrics"] == ["f1", "contains"] for cell in cells)
    write(data, GOOD, GOOD, GOOD)
    assert not {cell.id for cell in cells} & {cell.id for cell in read_experiment(file).cells()}
    file.write_text(f'workload = "{data}"\nmetrics = ["f2"]\npolicies = ["full"]\n')
    with pytest.raises(WorkloadError, match="mine.toml: unknown metric 'f2'"):
        read_experiment(file)
