"""The notebooks: both files of each pair agree, each runs from clean, and JupyterLab shows what moves."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
LAB = "application/vnd.vegalite.v5+json"


def execution() -> Any:
    """notebooks/execute.py, which writes the pairs."""
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_two_files_of_a_pair_agree(name: str) -> None:
    text, made = execution().read(name), nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [(c.cell_type, c.source) for c in text.cells]
    assert jupytext.writes(made, fmt="py:percent").count("# %%") == len(text.cells)


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebooks_show_without_a_kernel_and_name_no_place(name: str) -> None:
    made = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(made)
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "widgets" not in made.metadata and outputs
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
        data = output.get("data", {})
        assert "application/vnd.jupyter.widget-view+json" not in data
        if LAB in data:
            assert "image/png" in data
    text = json.dumps([{k: v for k, v in output.items() if k != "image/png"} for output in outputs])
    assert not re.search(r"/(root|home|tmp|Users|work|var)/", text)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 400_000


PROGRESS = "  0%|          | 0/6 [00:00<?, ?it/s]\r 50%|#####     | 3/6 [00:01<00:01,  2.52it/s]\r\n"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (["BackendWarning: MLX runs on slow reference BLAS\n"], "BackendWarning: MLX runs on slow reference BLAS\n"),
        (["UserWarning: 100% of it | all\n", PROGRESS], "UserWarning: 100% of it | all\n"),
        ([PROGRESS + "PolicyWarning: a budget\n", "\n"], "PolicyWarning: a budget\n"),
        ([PROGRESS], ""),
    ],
)
def test_saved_notebooks_keep_what_was_written_to_stderr_except_progress(written: list[str], kept: str) -> None:
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in written]
    cell = nbformat.v4.new_code_cell("x", outputs=[*outputs, nbformat.v4.new_output("stream", name="stdout", text="y")])
    settled = execution().settle(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert "".join(output.text for output in settled if output.name == "stderr") == kept
    assert [output.text for output in settled if output.name == "stdout"] == ["y"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_clean(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    module = execution()
    done = module.settle(module.execute(module.read(name), tmp_path))
    shown = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert shown and not [output for output in shown if output.output_type == "error"]
    assert not [output.text for output in shown if output.get("name") == "stderr"]  # a warning would be there


class Lab:
    """`kvlab lab` in a process."""

    def __init__(self, folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config.mkdir()
        settings = {"LabApp": {"expose_app_in_browser": True}}
        for name in ("server", "lab"):
            (config / f"jupyter_{name}_config.json").write_text(json.dumps(settings))
        monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
        monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(config))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvlab", "lab", str(folder), "--no-browser"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self.log: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(300):
            self.stop()
            raise RuntimeError(f"no JupyterLab: {''.join(self.log)[-2000:]}")
        found = re.search(r"((http://(?:127\.0\.0\.1|localhost):\d+)/\S*\?token=(\w+))", "".join(self.log))
        assert found
        self.address, self.url, self.token = found.groups()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "?token=" in line:
                self._ready.set()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium to look at the notebooks in a browser")
    started = Lab(tmp_path / "mine", tmp_path / "config", monkeypatch)
    yield started
    started.stop()


def test_in_jupyterlab_the_index_opens_and_the_picture_follows_the_slider(lab: Lab) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 2400})
        page.goto(lab.address, timeout=60_000)
        page.get_by_role("link", name="Watch it evict").wait_for(timeout=60_000)
        page.goto(f"{lab.url}/lab/tree/02_watch_it_evict.ipynb?token={lab.token}&reset", timeout=60_000)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
        # Commands that come before the kernel is connected are lost.
        kernel = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
        page.wait_for_function(f"{kernel}?.status === 'idle'", timeout=60_000)
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        panel = page.locator(".kvlab-panel").first
        picture = panel.locator(".widget-html-content").last
        picture.get_by_text("step 0", exact=False).first.wait_for(timeout=150_000)
        before = picture.inner_html()
        handle = panel.locator(".widget-hslider", has_text="step").locator(".noUi-handle")
        handle.focus()
        for _ in range(2):
            handle.press("ArrowRight")
        picture.get_by_text("step 2", exact=False).first.wait_for(timeout=30_000)
        assert picture.inner_html() != before
        assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        browser.close()
