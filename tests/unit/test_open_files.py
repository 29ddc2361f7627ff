"""Limits of open files: kvlab starts under any of them, and lowers none.

The class: every pair of a soft and a hard limit that a system, a container or a supervisor sets.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment

CODE = """
import json, resource, sys
soft, hard = json.loads(sys.argv[1])
real = resource.setrlimit
limits = [soft, hard]
def getrlimit(what):
    return tuple(limits) if what == resource.RLIMIT_NOFILE else (-1, -1)
def setrlimit(what, new):
    "As the system answers a process without special rights."
    assert what == resource.RLIMIT_NOFILE
    if limits[1] != -1 and (new[1] == -1 or new[1] > limits[1]):
        raise ValueError("not allowed to raise maximum limit")
    if new[1] != -1 and new[0] > new[1]:
        raise ValueError("current limit exceeds maximum limit")
    limits[:] = new
resource.getrlimit, resource.setrlimit = getrlimit, setrlimit
import kvlab
from mlx_lm.utils import load
assert resource.setrlimit is setrlimit and load
print(json.dumps(limits))
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((256, 1024), (1024, 1024)),
        ((1024, 4095), (2048, 4095)),
        ((64, 64), (64, 64)),
        ((256, -1), (2048, -1)),
        ((1024, 1048576), (2048, 1048576)),
        ((65536, 1048576), (65536, 1048576)),
        ((-1, -1), (-1, -1)),
    ],
)
def test_import_starts_under_any_limit_and_only_raises_the_soft_one(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(before)],
        capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert tuple(json.loads(done.stdout)) == after
