"""The workload `tools`: items of BFCL and of tau-bench's form, in files and folders, and what is refused."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from kvlab.errors import WorkloadError
from kvlab.workloads import is_teacher_forced, load_workload
from kvlab.workloads.bfcl import calls_of_answer, tools_of
from kvlab.workloads.grading import calls_of
from kvlab.workloads.tools import Tools
from tests.tool_items import ITEMS, TRAJECTORIES, write_bfcl, write_trajectories


def test_bfcl_items_become_requests_with_calls_and_json_schemas(tmp_path: Path) -> None:
    requests = Tools(write_bfcl(tmp_path / "items.json")).requests()
    assert [request.conversation for request in requests] == [item["id"] for item, _ in ITEMS]
    assert {request.kind for request in requests} == {"call"}
    first = requests[0]
    assert calls_of(first.reference or {}) == [("book_table", {"place": "Rome", "seats": 2})]
    parameters = first.tools[0]["function"]["parameters"]
    assert parameters["type"] == "object"
    assert {key: value.get("type") for key, value in parameters["properties"].items()} == {
        "place": "string", "seats": "integer", "price": "number", "note": None, "at": "array",
    }  # fmt: skip
    assert [call["function"]["name"] for call in (requests[1].reference or {})["tool_calls"]] == ["roll", "roll"]


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ({"a": [1, 2]}, {"a": 1}),
        ({"a": ["", "x"]}, {}),  # may be left out
        ({"a": ["x", ""]}, {"a": "x"}),
        ({"a": [{"b": ["c", "d"], "e": [[1, 2]]}]}, {"a": {"b": "c", "e": [1, 2]}}),
        ({"a": [[{"b": ["c"]}, {"b": ["d"]}]]}, {"a": [{"b": "c"}, {"b": "d"}]}),
        ({"a": [False]}, {"a": False}),
        ({"a": [[]]}, {"a": []}),
        ({}, {}),
    ],
)
def test_the_first_accepted_value_is_the_reference(accepted: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert calls_of_answer({"ground_truth": [{"f": accepted}]}) == [("f", wanted)]


def test_a_parameter_with_the_name_of_a_type_stays_as_it_is() -> None:
    function = {
        "name": "f",
        "parameters": {
            "type": "dict",
            "properties": {
                "type": {"type": "dict", "properties": {"any": {"type": "any"}}},
                "float": {"enum": ["dict"]},
            },
        },
    }
    parameters = tools_of({"function": function})[0]["function"]["parameters"]
    assert parameters["properties"]["type"] == {"type": "object", "properties": {"any": {}}}
    assert parameters["properties"]["float"] == {"enum": ["dict"]}


def test_a_conversation_gives_its_first_calls_and_as_many_texts(tmp_path: Path) -> None:
    path = write_trajectories(tmp_path / "shop_talks.json.xz")
    every = Tools(path).requests()
    assert [(r.conversation, r.turn, r.kind) for r in every] == [
        ("shop_talks-0", 1, "chat"), ("shop_talks-0", 2, "call"), ("shop_talks-0", 3, "call"),
        ("shop_talks-0", 4, "chat"), ("shop_talks-1", 1, "call"),
    ]  # fmt: skip
    assert every[0].tools[0]["function"]["name"] == "find_item"
    assert [r.turn for r in Tools(path, turns=1).requests()] == [1, 2, 1]
    assert [r.conversation for r in Tools(path, n=1).requests()] == ["shop_talks-0"] * 4


def test_a_folder_gives_items_of_its_files_in_turn(tmp_path: Path) -> None:
    write_bfcl(tmp_path / "b.json")
    write_trajectories(tmp_path / "a_talks.jsonl")
    (tmp_path / "README.md").write_text("no items")
    names = [r.conversation for r in Tools(tmp_path, n=3, turns=1).requests()]
    assert list(dict.fromkeys(names)) == ["a_talks-0", ITEMS[0][0]["id"], "a_talks-1"]
    assert len(TRAJECTORIES) == 2


def test_seeds_take_the_next_items_until_there_are_none(tmp_path: Path) -> None:
    path = write_bfcl(tmp_path / "items.json")
    every = [request.conversation for request in Tools(path).requests()]
    parts = [[request.conversation for request in Tools(path, n=2, seed=seed).requests()] for seed in (0, 1)]
    assert parts == [every[:2], every[2:4]] and parts[1]
    assert [r.conversation for r in Tools(path, seed=7).requests()] == every, "without n, all"
    with pytest.raises(WorkloadError, match="2 of them with seed 9 are none; write a smaller seed"):
        Tools(path, n=2, seed=9)


def test_all_items_are_taken_unless_n_is_given(tmp_path: Path) -> None:
    path = write_bfcl(tmp_path / "items.json")
    assert len(load_workload(f"tools:{path}").requests()) == len(ITEMS)
    assert len(load_workload(f"tools:{path}", n=1).requests()) == 1
    assert is_teacher_forced(f"tools:{path}") and is_teacher_forced("kl:x") and not is_teacher_forced("agent")
    assert not is_teacher_forced("nothing")


@pytest.mark.parametrize(
    ("content", "answers", "says"),
    [
        ("", None, "nothing in it"),
        ('{"id": "a", "question": [], "function": []}', "", "no answer with the id 'a'"),
        ('{"id": "a", "question": [], "function": []}', None, "no answers; put them in"),
        ('{"id": "a", "question": [], "function": []}', '{"id": "a"}', '"ground_truth" must be'),
        ('{"id": "a", "question": [], "function": []}', "{", ":1: expected"),
        ('{"id": "a", "question": 3, "function": []}', '{"id": "a", "ground_truth": [{"f": {}}]}', '"question" must'),
        (
            '{"id": "a", "question": "q", "function": [3]}',
            '{"id": "a", "ground_truth": [{"f": {}}]}',
            '"function" must',
        ),
        ('{"id": "a", "question": "q", "function": []}\n{"a": 1}', "", ":2: expected an item"),
        ('{"id": "a", "question": "q", "function": []}\n{', "", ":2: broken JSON"),
        ('[[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]', None, "no tool call in it"),
    ],
)
def test_files_that_are_no_items_are_refused(tmp_path: Path, content: str, answers: str | None, says: str) -> None:
    (tmp_path / "x.json").write_text(content)
    if answers is not None:
        (tmp_path / "possible_answer").mkdir()
        (tmp_path / "possible_answer" / "x.json").write_text(answers)
    with pytest.raises(WorkloadError, match=says.replace("(", "\\(")):
        Tools(tmp_path / "x.json")


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no .json"):
        Tools(tmp_path)
    with pytest.raises(WorkloadError, match="No such file"):
        Tools(tmp_path / "none.json")
    (tmp_path / "cut.json.xz").write_bytes(lzma.compress(b"[]")[:-3])
    with pytest.raises(WorkloadError, match="not readable"):
        Tools(tmp_path / "cut.json.xz")
    with pytest.raises(WorkloadError, match="tokens applies to"):
        load_workload(f"tools:{write_bfcl(tmp_path / 'b.json')}", tokens=100)
    assert json.loads(write_bfcl(tmp_path / "b.json").read_text().splitlines()[0])["id"] == ITEMS[0][0]["id"]
