"""`kvlab lab`: what is copied, and what stays its owner's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kvlab
from kvlab.cli import lab
from kvlab.cli.main import main
from kvlab.errors import RunError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    for name in ("01_one", "02_two"):
        (folder / f"{name}.ipynb").write_text(f"{name} v1")
    monkeypatch.setattr(lab, "notebooks_path", lambda: folder)
    return folder


def test_a_copy_is_made_and_renewed(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert lab.copy_notebooks(mine).written == ("01_one.ipynb", "02_two.ipynb")
    assert lab.copy_notebooks(mine) == lab.Copied((), ())
    (source / "01_one.ipynb").write_text("01_one v2")
    assert lab.copy_notebooks(mine).written == ("01_one.ipynb",)
    assert (mine / "01_one.ipynb").read_text() == "01_one v2"


def test_notebooks_that_their_owner_changed_stay(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    lab.copy_notebooks(mine)
    (mine / "02_two.ipynb").write_text("my own")
    (source / "02_two.ipynb").write_text("02_two v2")
    copied = lab.copy_notebooks(mine)
    assert copied.kept == ("02_two.ipynb",) and (mine / "02_two.ipynb").read_text() == "my own"
    (mine / "02_two.ipynb").unlink()
    assert lab.copy_notebooks(mine).written == ("02_two.ipynb",)


def test_a_file_that_was_there_before_is_not_ours(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "01_one.ipynb").write_text("from elsewhere")
    assert lab.copy_notebooks(mine).kept == ("01_one.ipynb",)


def test_a_folder_that_cannot_be(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot copy the notebooks to .*choose another folder"):
        lab.copy_notebooks(tmp_path / "file")
    assert main(["lab", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_lab_command_starts_jupyterlab(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    monkeypatch.setattr(lab.os, "execve", lambda program, command, environment: asked.append(command))
    assert main(["lab", str(tmp_path / "mine"), "--port", "9123", "--no-browser"]) == 0
    assert asked == [[sys.executable, "-m", "jupyterlab", str(tmp_path / "mine"), "--port=9123", "--no-browser"]]


def test_the_source_tree_has_notebooks() -> None:
    assert len(list(lab.notebooks_path().glob("[0-9]*.ipynb"))) == 7


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
