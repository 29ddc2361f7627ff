"""Workloads: deterministic, append-only, graded by what is stated; transcripts read or refused clearly."""

from __future__ import annotations

import gc
import json
import lzma
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli.main import cli
from kvlab.errors import WorkloadError
from kvlab.experiments import run
from kvlab.experiments.config import read_experiment
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.workloads import Workload, WorkloadRequest, load_workload, names_with_option, workload_names
from kvlab.workloads.base import assistant, cut_turns, user
from kvlab.workloads.grading import grade_values, parse_call
from kvlab.workloads.registry import known_workloads

TAU = Path(__file__).resolve().parents[3] / "shared" / "data" / "tau-bench"
GENERATED = ("agent", "retrieval", "chat")
RETRIEVAL = "retrieval:question=WHEN"
RETRIEVALS = ("retrieval", "retrieval:question=none")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TALK = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def rendered(model: LoadedModel, request: WorkloadRequest) -> str:
    return model.tokenizer.apply_chat_template(
        list(request.messages), tools=list(request.tools) or None, add_generation_prompt=True, tokenize=False
    )


@pytest.mark.parametrize("name", GENERATED)
def test_same_seed_same_requests(name: str) -> None:
    assert load_workload(name, n=2, seed=3).requests() == load_workload(name, n=2, seed=3).requests()
    assert load_workload(name, n=2, seed=3).requests() != load_workload(name, n=2, seed=4).requests()


@pytest.mark.parametrize("name", GENERATED)
def test_conversations_come_one_after_the_other_in_turn_order(name: str) -> None:
    requests = load_workload(name, n=3, turns=7).requests()
    assert [(r.conversation, r.turn) for r in requests] == [(f"{name}-{c}", t) for c in range(3) for t in range(1, 8)]


@pytest.mark.parametrize("name", GENERATED)
def test_history_grows_by_the_reference(name: str) -> None:
    for earlier, later in pairwise(load_workload(name, turns=9).requests()):
        assert later.messages[: len(earlier.messages)] == earlier.messages
        assert later.messages[len(earlier.messages)] == earlier.reference


@pytest.mark.parametrize("name", GENERATED)
def test_rendering_is_append_only_in_text_and_tokens(name: str, bundled: LoadedModel) -> None:
    for earlier, later in pairwise(load_workload(name, turns=10).requests()):
        before, after = rendered(bundled, earlier), rendered(bundled, later)
        assert after.startswith(before)
        ids = bundled.encode(before)
        assert bundled.encode(after)[: len(ids)] == ids


def test_agent_cycle_tools_and_size(bundled: LoadedModel) -> None:
    requests = load_workload("agent").requests()
    assert [r.kind for r in requests] == ["call", "answer", "call", "answer", "recall"] * 3
    assert 10 <= len(requests[0].tools) <= 14
    system = bundled.tokenizer.apply_chat_template(
        [dict(requests[0].messages[0])], tools=list(requests[0].tools), tokenize=False
    )
    assert 1500 <= len(bundled.encode(system)) <= 2000


def test_agent_recall_was_seen_turns_ago() -> None:
    for request in load_workload("agent", n=20).requests():
        if request.kind == "recall":
            assert request.reference is not None
            value = request.reference["content"].split("#")[1][:3]
            said = [i for i, m in enumerate(request.messages) if f"#{value}" in (m["content"] or "")]
            results = [i for i, m in enumerate(request.messages) if m["role"] == "tool"]
            assert said and said[0] <= results[-2]


@pytest.mark.parametrize("tokens", [500, 1500, 4000])
def test_retrieval_has_the_length_asked_for(tokens: int, bundled: LoadedModel) -> None:
    def count(text: str) -> int:
        return len(bundled.encode(text))

    for counting in (count, None):
        request = load_workload("retrieval", tokens=tokens, count=counting).requests()[0]
        assert count(rendered(bundled, request)) == pytest.approx(tokens, rel=0.05)


def test_retrieval_asks_the_same_where_the_question_is_unseen(bundled: LoadedModel) -> None:
    known, unknown = (load_workload(spec, n=3, turns=2, tokens=400) for spec in RETRIEVALS)
    assert unknown.name == RETRIEVALS[1]
    for one, other in zip(known.requests(), unknown.requests(), strict=True):
        assert replace(other, unseen="") == one
        asked = one.messages[-1]["content"]
        assert asked.endswith(other.unseen) and (len(other.unseen) < len(asked) / 4 or other.turn == 2)
        turn = Prompts(bundled, [other]).turn(other)
        assert turn.compress_after is not None
        assert bundled.decode(turn.prompt[turn.compress_after :]).strip().startswith(other.unseen)


@pytest.mark.parametrize("name", GENERATED)
def test_the_reference_is_right(name: str) -> None:
    for request in load_workload(name, n=3).requests():
        assert request.reference is not None
        text = request.reference["content"]
        if request.kind == "call":
            function = request.reference["tool_calls"][0]["function"]
            text = f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}\n</tool_call>'
        grades = request.grade(text)
        assert set(grades.values()) == ({1.0} if request.kind != "chat" else set())
        assert set(request.grade("I do not know.").values()) == ({0.0} if request.kind != "chat" else set())


def test_grading_a_call() -> None:
    request = load_workload("agent").requests()[0]
    assert request.reference is not None
    function = request.reference["tool_calls"][0]["function"]
    right, arguments = function["name"], function["arguments"]
    other = next(t["function"]["name"] for t in request.tools if t["function"]["name"] != right)
    call = '<tool_call>{"name": "%s", "arguments": %s}</tool_call>'
    assert request.grade(call % (right, arguments)) == {"tool_call": 1.0, "argument": 1.0, "accuracy": 1.0}
    assert request.grade(call % (other, arguments))["accuracy"] == 0.0
    assert request.grade(call % (right, '{"handle": "@nobody"}')) == {
        "tool_call": 1.0,
        "argument": 0.0,
        "accuracy": 0.0,
    }
    assert request.grade(call % (right, "{}"))["tool_call"] == 0.0  # a required argument is missing
    assert request.grade(call % ("no_such_tool", arguments))["tool_call"] == 0.0
    assert request.grade("Sure! " + call % (right, arguments))["tool_call"] == 0.0


def test_parse_call_is_strict() -> None:
    assert parse_call('  <tool_call>\n{"name": "a", "arguments": {"b": 1}}\n</tool_call>\n') == ("a", {"b": 1})
    for text in ("", "{}", "<tool_call>{}</tool_call>", '<tool_call>{"name": "a"}', "<tool_call>{'a'}</tool_call>"):
        assert parse_call(text) is None


def test_grading_values() -> None:
    assert grade_values("The desk of @mira is  #482 .", "The desk of @mira is #482.") == {"accuracy": 1.0}
    assert grade_values("It is #482 or #483.", "It is #482.") == {"accuracy": 0.0}
    assert grade_values("It is #4821.", "It is #482.") == {"accuracy": 0.0}
    assert grade_values("You are welcome.", "You are welcome.") == {}


def test_unknown_workload_lists_the_names() -> None:
    with pytest.raises(WorkloadError) as error:
        load_workload("agents")
    assert all(name in str(error.value) for name in workload_names())


@pytest.fixture
def squares() -> Iterator[type[Workload]]:
    """A workload of one class, as a user's file defines it."""

    class Squares(Workload):
        """Questions about square numbers."""

        name = "squares-of-test"

        def __init__(self, n: int = 1, turns: int = 3) -> None:
            self.n, self.turns = n, turns

        def requests(self) -> list[WorkloadRequest]:
            talk = [m for i in range(self.turns) for m in (user(f"{i} times {i}?"), assistant(f"#{i * i:03d}"))]
            kinds = {i: "recall" for i in range(len(talk))}
            return [request for i in range(self.n) for request in cut_turns(f"{self.name}-{i}", talk, kinds)]

    yield Squares
    del Squares
    gc.collect()  # a class that is gone is no longer known


def test_defined_workload_is_loaded_by_name_with_its_own_options(squares: type[Workload]) -> None:
    assert squares.name in workload_names()
    assert isinstance(load_workload(squares.name), squares)
    requests = load_workload(squares.name, n=2, turns=4, seed=5).requests()
    assert len(requests) == 8 and requests[3].grade("#009") == {"accuracy": 1.0}
    says = f"tokens applies to the .*needle, retrieval.* workloads only, not to '{squares.name}'"
    with pytest.raises(WorkloadError, match=says):
        load_workload(squares.name, tokens=300)


def test_defined_workload_is_run_swept_and_followed_by_name(
    squares: type[Workload], bundled: LoadedModel, tmp_path: Path
) -> None:
    results = run("full", squares.name, bundled, turns=2, progress=False)
    assert {row["workload"] for row in results.rows} == {squares.name}
    file = tmp_path / "some.toml"
    file.write_text(f'policies = ["full"]\nworkload = "{squares.name}"\nturns = 2\n')
    assert [cell.run.workload for cell in read_experiment(file).cells()] == [squares.name]
    with pytest.raises(WorkloadError, match="tokens"):
        file.write_text(f'policies = ["full"]\nworkload = "{squares.name}"\ntokens = 200\n')
        read_experiment(file)


def test_command_line_lists_the_workloads_and_who_takes_tokens() -> None:
    described = {option.name: getattr(option, "help", "") for option in cli.commands["compare"].params}
    assert all(name in described["workload"] for name in ("agent", "chat", "needle:TASK", RETRIEVAL, "transcript:FILE"))
    others = {name for name, cls in known_workloads().items() if not cls.__module__.startswith("kvlab.")}
    named = described["tokens"].removeprefix("Length of a prompt; for ").removesuffix(".").split(", ")
    told = [name for name in named if name not in others]  # other tests may have imported workloads of a script
    assert told == [name for name in names_with_option("tokens") if name not in others]


def test_every_workload_file_of_the_folder_is_imported() -> None:
    assert {"agent", "chat", "needle:TASK", RETRIEVAL, "transcript:FILE"} <= set(workload_names())


@pytest.mark.parametrize(
    "arguments",
    [{"spec": "transcript"}, {"spec": "agent:3"}, {"spec": "chat", "tokens": 5}, {"spec": "agent", "turns": 0}]
    + [{"spec": "retrieval", "tokens": 3}, {"spec": "chat", "n": 0}]
    + [{"spec": "retrieval:later"}, {"spec": "retrieval:question=before"}],
)
def test_bad_settings_are_refused_in_one_line(arguments: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError) as error:
        load_workload(**arguments)
    assert "\n" not in str(error.value)


def test_transcript_formats(tmp_path: Path) -> None:
    with_tools = {"messages": TALK, "tools": [TOOL]}
    packed = tmp_path / "packed.json.xz"
    packed.write_bytes(lzma.compress(json.dumps([with_tools, {"traj": TALK}], indent=1).encode()))
    files = {
        write(tmp_path / "lists.jsonl", TALK, TALK): [0, 0],
        write(tmp_path / "objects.jsonl", with_tools, {"messages": TALK}): [1, 0],
        write(tmp_path / "array.json", json.dumps([with_tools, TALK], indent=2)): [1, 0],
        write(tmp_path / "single.json", json.dumps(TALK, indent=2)): [0],
        packed: [1, 0],
    }
    for path, tools in files.items():
        requests = load_workload(f"transcript:{path}", n=9).requests()
        assert [len(r.tools) for r in requests] == tools, path
        assert all(r.kind == "replay" and r.grade("anything") == {} for r in requests)
        assert requests[0].messages == (TALK[0],) and requests[0].reference == TALK[1]


def test_transcript_takes_tools_from_beside(tmp_path: Path) -> None:
    path = write(tmp_path / "shop_talks.jsonl", TALK)
    write(tmp_path / "shop_tools.json", [TOOL])
    assert load_workload(f"transcript:{path}").requests()[0].tools == (TOOL,)


def test_transcript_n_and_turns(tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", TALK * 5, TALK * 5)
    assert len(load_workload(f"transcript:{path}", n=2).requests()) == 10
    assert len(load_workload(f"transcript:{path}", n=1, turns=3).requests()) == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([TALK, "{broken"], ":2: broken JSON"),
        ([TALK, {"text": "no messages"}], ':2: expected a list of messages, or an object with "messages"'),
        ([[{"role": "robot", "content": "x"}]], ":1: message 1 has role 'robot'; expected one of system"),
        ([TALK, [*TALK, "what"]], ":2: message 3 has role 'what'"),
        ([[{"role": "user"}]], ":1: message 1 (user) has no content"),
        ([[*TALK, {"role": "assistant", "tool_calls": [{}]}]], ":1: message 3: a tool call needs"),
        ([[{"role": "user", "content": "x", "tool_calls": []}]], ":1: message 1 (user) has tool_calls"),
        ([{"messages": TALK, "tools": ["add"]}], ":1: tools must be a list"),
        (["[", json.dumps(TALK) + ",", "{]"], ":3: broken JSON"),
        ([""], "nothing in it; expected a list of messages"),
        (["[" * 100_000], ":1: broken JSON"),
    ],
)
def test_broken_transcript_names_file_and_line(content: list[Any], told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "broken.jsonl", *content)
    with pytest.raises(WorkloadError) as error:
        load_workload(f"transcript:{path}")
    assert str(error.value).startswith(str(path)) and told in str(error.value) and "\n" not in str(error.value)


def test_missing_and_unreadable_transcripts(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="No such file"):
        load_workload(f"transcript:{tmp_path / 'none.jsonl'}")
    (tmp_path / "bad.json.xz").write_bytes(b"not xz at all")
    with pytest.raises(WorkloadError, match="not readable as xz"):
        load_workload(f"transcript:{tmp_path / 'bad.json.xz'}")


@pytest.mark.skipif(not TAU.is_dir(), reason="the shared data folder is not beside this checkout")
def test_real_trajectories_replay(bundled: LoadedModel) -> None:
    requests = load_workload(f"transcript:{TAU / 'airline_trajectories.json.xz'}", n=3).requests()
    assert len({r.conversation for r in requests}) == 3
    assert all(len(r.tools) == 14 for r in requests)
    for earlier, later in pairwise(r for r in requests if r.conversation == "transcript-0"):
        assert rendered(bundled, later).startswith(rendered(bundled, earlier))


def request_of(*messages: Any, reference: Any = None, **fields: str) -> WorkloadRequest:
    return WorkloadRequest("c", 1, tuple(messages), (), reference, "answer", 8, **fields)


def test_a_request_says_what_is_asked_and_wanted() -> None:
    """For any form of message: text, parts, calls, none at all; what a workload says itself counts."""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    call = {"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    broken = {"type": "function", "function": {"name": "add", "arguments": '{"x": '}}
    tool = {"role": "tool", "content": "3"}
    asked = [
        request_of(user("first"), assistant("A."), user("second"), reference=assistant("B.")),
        request_of({"role": "user", "content": parts}, tool, reference={"role": "assistant", "tool_calls": [call]}),
        request_of(user("x"), reference={"role": "assistant", "content": None, "tool_calls": [call, broken]}),
        request_of({"role": "system", "content": "S"}),
        request_of(user("long"), reference=assistant("B."), question="short", wanted="b"),
    ]
    assert [(one.question, one.wanted) for one in asked] == [
        ("second", "B."),
        ("a\nb", '{"arguments": {"x": 1}, "name": "add"}'),
        ("x", '[{"arguments": {"x": 1}, "name": "add"}, {"arguments": "{\\"x\\": ", "name": "add"}]'),
        ("", ""),
        ("short", "b"),
    ]
