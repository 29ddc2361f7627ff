"""The notebooks on models of other kinds: no cell hopes for the bundled model's answers, layers, heads or context.

One has random weights: it answers no question right, and its tokenizer knows bytes only: prompts are long. The other is
a real model, where it is on this machine.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.acceptance.test_notebooks import NAMES, ROOT, execution
from tests.helpers import random_model_folder

WHOLE_NOTEBOOK_S = 900
REAL_MODEL = Path.home() / ".cache/kvlab/models/smollm2-135m"


def with_model(name: str, model: str) -> object:
    """A notebook without outputs, whose first code cell names this model."""
    notebook = execution().read(name)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source, found = re.subn(r'^MODEL = "bundled".*$', f"MODEL = {model!r}", first.source, flags=re.M)
    assert found == 1
    return notebook


def run_on(name: str, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = execution()
    module.TIMEOUT_S = WHOLE_NOTEBOOK_S
    done = module.execute(with_model(name, model), folder)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_a_model_of_another_kind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = random_model_folder("llama", tmp_path / "other", num_hidden_layers=3, num_key_value_heads=1)
    run_on(name, str(folder), tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.skipif(not REAL_MODEL.is_dir(), reason=f"no {REAL_MODEL}: kvlab models get smollm2-135m")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_on_a_real_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(name, str(REAL_MODEL), tmp_path, monkeypatch)


def test_every_notebook_names_its_model_once_in_the_first_cell() -> None:
    for name in NAMES:
        with_model(name, "other")
        text = (ROOT / "notebooks" / f"{name}.py").read_text()
        assert len(re.findall(r"^MODEL = ", text, re.M)) == 1
