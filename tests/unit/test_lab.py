"""`kvlab lab`: what is copied, and what stays its owner's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import kvlab
from kvlab.cli import lab
from kvlab.cli.lab_index import index_notebook
from kvlab.cli.main import main
from kvlab.errors import RunError


def notebook(text: str) -> str:
    """A notebook of one Markdown cell, as Jupyter writes it: its lines apart."""
    cell = {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    for name in ("01_one", "02_two"):
        (folder / f"{name}.ipynb").write_text(notebook(f"# Title of {name}\n\nWhat | it\nshows.\n\nMore."))
    monkeypatch.setattr(lab, "notebooks_path", lambda: folder)
    monkeypatch.setattr(lab, "is_root", lambda: False)
    return folder


def test_a_copy_is_made_and_renewed(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert lab.copy_notebooks(mine).written == ("00_index.ipynb", "01_one.ipynb", "02_two.ipynb")
    assert lab.copy_notebooks(mine) == lab.Copied((), ())
    (source / "01_one.ipynb").write_text(notebook("# Title of 01_one\n\nWhat | it\nshows.\n\nMore and more."))
    assert lab.copy_notebooks(mine).written == ("01_one.ipynb",)
    assert "More and more" in (mine / "01_one.ipynb").read_text()


def test_notebooks_that_their_owner_changed_stay(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    lab.copy_notebooks(mine)
    (mine / "02_two.ipynb").write_text("my own")
    (source / "02_two.ipynb").write_text(notebook("# Two, version 2"))
    copied = lab.copy_notebooks(mine)
    assert copied.kept == ("02_two.ipynb",) and (mine / "02_two.ipynb").read_text() == "my own"
    assert copied.written == ("00_index.ipynb",)
    (mine / "02_two.ipynb").unlink()
    assert lab.copy_notebooks(mine).written == ("02_two.ipynb",)


def test_a_file_that_was_there_before_is_not_ours(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "01_one.ipynb").write_text("from elsewhere")
    (mine / "00_index.ipynb").write_text("from elsewhere")
    assert lab.copy_notebooks(mine).kept == ("00_index.ipynb", "01_one.ipynb")


def test_the_index_links_every_notebook_with_its_own_words(source: Path, tmp_path: Path) -> None:
    (source / "03_three.ipynb").write_text(notebook("No title here."))
    (source / "04_four.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "source": "x"}]}))
    lab.copy_notebooks(tmp_path / "mine")
    made = nbformat.read(tmp_path / "mine" / "00_index.ipynb", as_version=4)
    nbformat.validate(made)
    [cell] = made.cells
    for wanted in (
        "### [Title of 01_one](01_one.ipynb)\n\nWhat | it\nshows.\n",
        "### [Title of 02_two](02_two.ipynb)",
        "### [03_three](03_three.ipynb)\n\nNo title here.",
        "### [04_four](04_four.ipynb)",
    ):
        assert wanted in cell.source
    assert "More." not in cell.source


def test_the_index_of_the_real_notebooks_says_what_each_shows() -> None:
    paths = sorted(lab.notebooks_path().glob("[0-9]*.ipynb"))
    text = json.loads(index_notebook(paths))["cells"][0]["source"]
    entries = re.findall(r"^### \[(.+)\]\((\S+)\)\n\n(.+)", text, re.M)
    assert [name for _, name, _ in entries] == [path.name for path in paths]
    assert all(title != Path(name).stem and len(said) > 40 for title, name, said in entries)


def test_a_folder_that_cannot_be(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot copy the notebooks to .*choose another folder"):
        lab.copy_notebooks(tmp_path / "file")
    assert main(["lab", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def started(source: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that would have replaced this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(lab.os, "execve", lambda program, command, environment: commands.append(command))
    return commands


INDEX = "--LabApp.default_url=/lab/tree/00_index.ipynb"


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (["--port", "9123", "--no-browser"], ["--port=9123", "--no-browser"]),
        (["--ip", "0.0.0.0", "--ServerApp.token", "secret"], ["--ip", "0.0.0.0", "--ServerApp.token", "secret"]),
        (["--ip=0.0.0.0", "--debug"], ["--ip=0.0.0.0", "--debug"]),
        (["-y", "--IdentityProvider.token=a b"], ["-y", "--IdentityProvider.token=a b"]),
        (["--LabApp.default_url=/lab"], ["--LabApp.default_url=/lab"]),
        (["--collaborative", "--log-level", "10"], ["--collaborative", "--log-level", "10"]),
        (["--help-all"], ["--help-all"]),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["folder first", "folder last"])
def test_jupyterlab_gets_its_own_options(
    given: list[str], passed_on: list[str], first: bool, started: list[list[str]], tmp_path: Path
) -> None:
    mine = str(tmp_path / "mine")
    assert main(["lab", *([mine, *given] if first else [*given, mine])]) == 0
    assert started == [[sys.executable, "-m", "jupyterlab", mine, INDEX, *passed_on]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--no-browsr"], "No such option --no-browsr"),
        (["--prot=1"], "No such option --prot"),
        (["--port", "99999"], "'--port'"),
        (["one", "two"], "two is one folder too many"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], says: str, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert started == []


@pytest.mark.parametrize("given", [[], ["--allow-root"]])
def test_root_gets_a_jupyterlab_that_starts(
    given: list[str], started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "is_root", lambda: True)
    assert main(["lab", str(tmp_path / "mine"), *given]) == 0
    assert started[0].count("--allow-root") == 1


def test_the_source_tree_has_notebooks() -> None:
    assert len(list(lab.notebooks_path().glob("[0-9]*.ipynb"))) == 10


def test_public_names_are_there_and_no_module_hides_one() -> None:
    for name in kvlab.__all__:
        assert getattr(kvlab, name).__name__.lower() == name.lower()
    modules = {path.stem for path in Path(kvlab.__file__).parent.iterdir()}
    assert not modules & set(kvlab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'; the public names are"):
        _ = kvlab.nonsense


def test_importing_kvlab_and_asking_for_help_stay_light() -> None:
    code = (
        "import sys, kvlab; from kvlab.cli.main import main; main(['--help'])\n"
        "print(*(name in sys.modules for name in ('mlx.core', 'altair')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert "\n  lab " in done.stdout
