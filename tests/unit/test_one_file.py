"""What one change costs: a workload, a scorer and a replacement policy are one new file each, in a copy of kvlab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORKLOAD = '''
from kvlab.workloads.base import Workload, WorkloadRequest, assistant, cut_turns, user


class Echo(Workload):
    """One question a conversation."""

    name = "echo"

    def __init__(self, n: int = 1, tokens: int = 9) -> None:
        self.n, self.tokens = n, tokens

    def requests(self) -> list[WorkloadRequest]:
        talk = [user("#001?"), assistant("#001.")]
        return [request for i in range(self.n) for request in cut_turns(f"echo-{i}", talk, {1: "answer"})]
'''
SCORER = '''
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.policies.scorers.base import ScoreContext, Scorer


@dataclass(frozen=True)
class Newest(Scorer):
    """The newest tokens stay."""

    name: ClassVar[str] = "newest"

    def score(self, context: ScoreContext) -> mx.array:
        return mx.broadcast_to(context.positions.astype(mx.float32), context.keys.shape[:-1])
'''
REPLACEMENT = '''
from kvlab.store.replacement.lru import Lru


class Other(Lru):
    """Least recently used, under another name."""

    name = "other"
'''
SEEN = """
import json
from kvlab.cli.main import cli
from kvlab.policies import Policy, registry
from kvlab.store.replacement import make
from kvlab.workloads import load_workload
shown = {option.name: getattr(option, "help", "") for option in cli.commands["compare"].params}
print(json.dumps({
    "workload": len(load_workload("echo", n=3, tokens=7).requests()),
    "offered": "echo" in shown["workload"] and "echo" in shown["tokens"],
    "scorer": str(Policy.parse("newest:budget=7")),
    "listed": "newest" in [info.name for info in registry()],
    "replacement": type(make("other", 4)).__name__,
    "tier": str(Policy.parse("tiered:replace=other")),
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "kvlab", root / "kvlab", ignore=shutil.ignore_patterns("__pycache__"))
    for place, text in (
        ("workloads/echo.py", WORKLOAD),
        ("policies/scorers/newest.py", SCORER),
        ("store/replacement/other.py", REPLACEMENT),
    ):
        assert not (root / "kvlab" / place).exists()
        (root / "kvlab" / place).write_text(text)
    return root


def test_workload_scorer_and_replacement_policy_are_one_new_file_each(copy: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", SEEN], cwd=copy, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "workload": 3,
        "offered": True,
        "scorer": "newest:budget=7",
        "listed": True,
        "replacement": "Other",
        "tier": "tiered:replace=other",
    }
