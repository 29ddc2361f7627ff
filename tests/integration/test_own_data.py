"""A user's own questions, metric and code on the bundled model: compared, graded, read, and run in other processes."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvlab
from kvlab.errors import RunError, UserCodeError
from kvlab.experiments.cell import execute
from kvlab.experiments.config import read_experiment
from kvlab.importing import import_user_file
from kvlab.models import LoadedModel
from kvlab.policies import Tiered
from kvlab.workloads import Workload, WorkloadRequest
from kvlab.workloads.base import assistant, cut_turns, user
from kvlab.workloads.retrieval import SYSTEM
from kvlab.workloads.words import NAMES as ALL_NAMES
from tests.processes import environment

NAMES = ALL_NAMES[:60:6]
FIVE_LINES = """
import kvlab
def right_digits(text, wanted): return sum(digit in text.split("#")[-1] for digit in wanted[1:]) / 3
results = kvlab.compare(["full", "snapkv:budget=0.9,window=8", "random:budget=0.1"], "q.jsonl", metric=right_digits)
answers = results.answers()
print(results, answers)
"""
CODE = '''
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

import kvlab
from kvlab.caches.codecs import Codec
from kvlab.policies import Module
from kvlab.workloads import Workload, WorkloadRequest
from kvlab.workloads.base import assistant, cut_turns, user


@dataclass(frozen=True)
class Latest(kvlab.Scorer):
    """The latest rows stay."""

    name: ClassVar[str] = "latest_of_test"

    def score(self, context):
        return mx.broadcast_to(context.positions.astype(mx.float32), context.keys.shape[:-1])


@dataclass(frozen=True)
class Rounded(Module):
    """Rounded rows."""

    name: ClassVar[str] = "rounded_of_test"
    slot: ClassVar[str] = "codec"


class RoundedCodec(Codec):
    module = Rounded

    def __init__(self, module): ...

    def encode(self, keys, values):
        return {"k": mx.round(keys * 8) / 8, "v": mx.round(values * 8) / 8}

    def decode(self, rows):
        return rows["k"], rows["v"]


class Codes(Workload):
    """Two questions of one conversation."""

    name = "codes_of_test"

    def requests(self) -> list[WorkloadRequest]:
        talk = [user("The code of @mira is #417. What is the code of @mira?"), assistant("The code of @mira is #417.")]
        return cut_turns("codes", [*talk, user("Again?"), talk[1]], {1: "answer", 3: "recall"}, max_tokens=8)


def says_code(text, wanted):
    return {"says": "#417" in text, "length": min(1, len(text) / 100)}
'''


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions about five facts each, in the words that the bundled model knows."""
    lines = []
    for index in range(20):
        facts = [(NAMES[(index + i) % 10], f"#{(index * 37 + i * 211) % 900 + 100}") for i in range(5)]
        context = " ".join(f"The badge of @{name} is {code}. Nobody came by train." for name, code in facts)
        name, code = facts[index % 5]
        question = f"What is the badge of @{name}?"
        lines.append({"system": SYSTEM, "context": context, "question": question, "answer": code, "max_tokens": 10})
    path = tmp_path_factory.mktemp("mine") / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def mine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file of own code; its names end in that of the test, since classes live on while something refers to them."""
    path = tmp_path / "mine.py"
    path.write_text(CODE.replace("of_test", name_of(request.node.name)))
    modules, folders = set(sys.modules), list(sys.path)
    yield path
    for name in [name for name in sys.modules if name.startswith("kvlab_user_file_") and name not in modules]:
        del sys.modules[name]
    sys.path[:] = folders


def name_of(test: str) -> str:
    return hashlib.sha256(test.encode()).hexdigest()[:6]


def test_own_questions_and_metric_are_compared_and_read_in_five_lines(
    questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(FIVE_LINES.strip().splitlines()) == 5
    monkeypatch.chdir(questions.parent)
    space: dict[str, object] = {}
    exec(FIVE_LINES, space)
    results = space["results"]
    assert isinstance(results, kvlab.Results)
    frame = results.frame()
    graded = frame.filter(frame["metric"] == "right_digits").group_by("policy").len()
    assert dict(graded.iter_rows()) == dict.fromkeys(results.policies, 20)
    full, _, random = results.summary()["accuracy"].to_list()
    assert full == 1 > random
    assert results.provenance["metrics"] == ["right_digits"]
    answers = results.answers()
    assert set(answers["question"]) == {f"What is the badge of @{name}?" for name in NAMES}
    assert answers["wanted"].str.contains(r"^#\d{3}$").all() and answers["right_digits"].is_between(0, 1).all()
    said = answers.filter(answers["policy"] == "full")
    assert said.filter(said["accuracy"] == 1)["text"].str.contains("#").all() and len(said) == 20


def test_own_code_runs_in_the_process_after_a_restart(
    mine: Path, bundled: LoadedModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Scorer, codec, workload and metric of one file, which the new process reads again."""
    import_user_file(mine)
    end = name_of(request.node.name)
    policies = [f"{part}|tiered:dir={tmp_path / part}" for part in (f"latest_{end}", f"rounded_{end}")]
    results = kvlab.compare(policies, f"codes_{end}", bundled, metric="says_code", restart=True, progress=False)
    frame = results.frame()
    for policy in policies:
        graded = frame.filter((frame["policy"] == policy) & (frame["metric"] == "says")).sort("turn")
        assert graded["phase"].to_list()[1:] == ["restart"] and graded["turn"].to_list() == [1, 2]
    assert {"accuracy", "says", "length"} <= set(frame["metric"])
    assert [Path(file["file"]) for file in results.provenance["imports"]] == [mine]


def test_own_code_of_an_importable_module_runs_after_a_restart_and_that_of_a_notebook_is_refused(
    mine: Path, bundled: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    mine.rename(tmp_path / "module_of_test.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    module = importlib.import_module("module_of_test")
    policy = module.Latest() | Tiered(dir=str(tmp_path / "store"))
    results = kvlab.run(policy, module.Codes(), bundled, restart=True, progress=False)
    assert "restart" in results.frame()["phase"].to_list()
    monkeypatch.setattr(module.Latest, "__module__", "__main__")
    with pytest.raises(RunError, match=f"'latest_{name_of(request.node.name)}' is defined in this notebook or script"):
        kvlab.run(policy, module.Codes(), bundled, restart=True, progress=False)
    monkeypatch.setattr(module.Latest, "__module__", "no_module_of_test")
    with pytest.raises(RunError, match="cannot import no_module_of_test"):
        kvlab.run(policy, module.Codes(), bundled, restart=True, progress=False)


def test_a_cell_with_own_code_runs_in_any_process(
    mine: Path, questions: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "mine.toml"
    lines = f'imports = ["{mine}"]\nworkload = "{questions}"\nn = 1\nmetrics = ["says_code"]\n'
    file.write_text(f'{lines}policies = ["latest_{name_of(request.node.name)}"]\n')
    (cell,) = read_experiment(file).cells()
    code = "import pickle, sys\nfrom kvlab.experiments.cell import execute\n"
    code += "result = execute(pickle.load(sys.stdin.buffer))\nprint(sorted(row['metric'] for row in result.rows))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(cell), capture_output=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert {"says", "length", "accuracy"} <= set(ast.literal_eval(done.stdout.decode()))
    mine.write_text(mine.read_text() + "\n# changed\n")
    with pytest.raises(UserCodeError, match="has changed since this was begun"):
        execute(cell)


def test_two_requests_under_one_name_are_refused(bundled: LoadedModel) -> None:
    class Twice(Workload):
        def requests(self) -> list[WorkloadRequest]:
            return cut_turns("same", [user("?"), assistant("!")], {}) * 2

    with pytest.raises(RunError, match="two requests for turn 1 of conversation 'same'"):
        kvlab.compare(["full"], Twice(), bundled, progress=False)


@pytest.mark.parametrize("name", ["ttft_ms", "exact", "kl", "turn", "policy"])
def test_a_grade_that_would_be_taken_for_another_metric_is_refused(name: str, bundled: LoadedModel) -> None:
    with pytest.raises(RunError, match=f"a grade is named {name!r}, which is"):
        kvlab.run("full", [{"question": "?", "answer": "x"}], bundled, metric=lambda *_: {name: 1}, progress=False)
