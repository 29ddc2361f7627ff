"""kvlab's errors in a notebook: the user's own line and the error, nothing of the inside of kvlab."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from kvlab import errors
from kvlab.errors import KvlabError

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = {
    "a policy's name": ("kvlab.compare(['full', 'snapkvv'], 'agent')", "PolicyError"),
    "a parameter": ("kvlab.Policy.parse('snapkv:bugdet=0.5')", "PolicyError"),
    "a workload's name": ("kvlab.compare(['full'], 'agnet')", "WorkloadError"),
    "a model's name": ("kvlab.load('/nowhere/model')", "ModelError"),
    "in a function of the user's": ("def mine():\n    return kvlab.watch('nope', ['x'])\nmine()", "PolicyError"),
    "an error on the decoder's thread": (
        "import mlx.core as mx\n"
        "class Nan(kvlab.Scorer):\n"
        "    name = 'nan'\n"
        "    def score(self, context):\n"
        "        return mx.full((1, *context.keys.shape[1:3]), mx.nan)\n"
        "kvlab.watch(Nan(budget=4), ['The code of @mira is #417. What is it?'])",
        "PolicyError",
    ),
    "a mistake that is not kvlab's": ("kvlab.Policy.parse(1 / 0)", "ZeroDivisionError"),
    "after %xmode Verbose": ("%xmode Verbose\nkvlab.Policy.parse('nope')", "PolicyError"),
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a kernel shows for each mistake: its lines, without colours."""
    cells = [nbformat.v4.new_code_cell(code) for code in ("import kvlab", *(code for code, _ in MISTAKES.values()))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        where = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True, resources=where).execute()
    found = {}
    for name, cell in zip(MISTAKES, notebook.cells[1:], strict=True):
        [error] = [output for output in cell.outputs if output.output_type == "error"]
        found[name] = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    return found


@pytest.mark.parametrize("name", [name for name in MISTAKES if not name.startswith(("after", "a mistake"))])
def test_a_mistake_is_the_users_own_line_and_one_error(name: str, shown: dict[str, list[str]]) -> None:
    code, error = MISTAKES[name]
    lines = shown[name]
    assert lines[-1].startswith(f"{error}: ")
    assert len(lines) <= 5
    assert re.match(r"Cell In\[\d+\], line \d+$", lines[0])
    assert lines[1] == f"----> {code.splitlines()[-1]}"
    assert not [line for line in lines if "kvlab/" in line and "----" not in line and line != lines[-1]]


def test_other_errors_and_verbose_tracebacks_stay_ipythons(shown: dict[str, list[str]]) -> None:
    assert any("Traceback (most recent call last)" in line for line in shown["a mistake that is not kvlab's"])
    full = shown["after %xmode Verbose"]
    assert len(full) > 20 and any("grammar.py" in line for line in full)


def outside() -> None:
    raise KvlabError("one\ntwo")


@pytest.mark.parametrize("call", [outside, lambda: outside()])
def test_without_a_kernel_a_rendering_names_files(call: Callable[[], None]) -> None:
    with pytest.raises(KvlabError) as caught:
        call()
    *places, last = caught.value._render_traceback_()
    assert last.endswith(": one\ntwo")
    assert all(place.startswith(f"File {__file__}, line ") for place in places)
    beside = Path(errors.__file__).parent.parent / "kvlab-notebooks" / "mine.py"
    with pytest.raises(KvlabError) as caught:
        exec(compile("outside()", str(beside), "exec"), {"outside": outside})
    assert f"File {beside}, line 1" in "\n".join(caught.value._render_traceback_())
    assert len(KvlabError("never raised")._render_traceback_()) == 1
