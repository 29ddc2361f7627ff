"""A user's own file: what it defines is known everywhere by name, and a file that fails is told with its line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kvlab.cli.main import main
from kvlab.errors import KvlabError, UserCodeError, WorkloadError
from kvlab.experiments.config import read_experiment
from kvlab.experiments.sweep import run_command
from kvlab.importing import UserFile, import_again, import_user_file, user_files, user_function_names, user_functions
from kvlab.policies import Policy, registry
from kvlab.provenance import provenance
from kvlab.results.promote import serve_line
from kvlab.store.replacement import make
from kvlab.workloads import load_workload
from kvlab.workloads.metrics import find_metric
from tests.processes import environment

GOOD = '''"""Mine."""

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

import kvlab
from kvlab.workloads import Workload, WorkloadRequest
from kvlab.workloads.base import assistant, cut_turns, user


@dataclass(frozen=True)
class Mine(kvlab.Scorer):
    """The latest rows stay."""

    name: ClassVar[str] = "NAME"
    last: int = 7

    def score(self, context):
        return mx.broadcast_to(context.positions.astype(mx.float32), context.keys.shape[:-1])


class Asked(Workload):
    """One question."""

    name = "NAME-asked"

    def requests(self) -> list[WorkloadRequest]:
        return cut_turns("asked", [user("?"), assistant("#001.")], {1: "answer"})


def NAME_close(text, wanted):
    return float(len(text) == len(wanted))


def _hidden(text, wanted):
    return 1
'''


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def good(folder: Path, name: str) -> Path:
    """A file whose names no other test uses: classes live on where something still refers to them."""
    return written(folder / f"{name}.py", GOOD.replace("NAME", name))


def test_what_a_file_defines_is_known_by_name(tmp_path: Path) -> None:
    path = good(tmp_path, "mine_a")
    assert "mine_a" not in [info.name for info in registry()]
    file = import_user_file(path)
    assert str(Policy.parse("mine_a:budget=0.25,last=3")) == "mine_a:budget=0.25,last=3"
    assert load_workload("mine_a-asked").requests()[0].wanted == "#001."
    assert find_metric("mine_a_close").grades("abc", "xyz") == {"mine_a_close": 1.0}
    assert user_function_names() == ["mine_a_close"] and not user_functions("Mine")
    with pytest.raises(WorkloadError, match="did you mean 'mine_a_close'"):
        find_metric("mine_close")
    assert provenance()["imports"] == [{"file": str(path), "sha256": file.sha256}]
    assert serve_line("mine_a", provenance()) == f"kvlab serve --policy 'mine_a' --import {path}"
    policy = Policy.parse("mine_a")
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_file_is_run_once_and_anew_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "import pathlib\nplace = pathlib.Path(__file__).with_suffix('.count')\n"
    count += "place.write_text(place.read_text() + 'x' if place.exists() else 'x')\n"
    path = written(tmp_path / "counted.py", count + "def once_value(text, wanted): return 0\n")
    monkeypatch.chdir(tmp_path)
    first = import_user_file("counted.py")
    assert first == import_user_file(path) == import_user_file(f"{tmp_path}/../{tmp_path.name}/counted.py")
    assert path.with_suffix(".count").read_text() == "x" and user_files() == [first]
    import_again(first)
    written(path, count + "def once_value(text, wanted): return 1\n")  # of the same length, at the same second
    with pytest.raises(UserCodeError, match="counted.py has changed since this was begun; begin again"):
        import_again(first)
    assert find_metric("once_value").grades("", "") == {"once_value": 1.0}
    written(path, "broken =")
    with pytest.raises(UserCodeError, match="counted.py:1: not Python"):
        import_user_file(path)
    assert find_metric("once_value").grades("", "") == {"once_value": 1.0}, "the file as it was goes on"
    assert not list(tmp_path.glob("__pycache__"))


def test_a_file_may_use_files_beside_it_and_does_not_hide_python_s(tmp_path: Path) -> None:
    written(tmp_path / "beside_it.py", "VALUE = 0.5\n")
    written(tmp_path / "random.py", "raise RuntimeError('this is not the standard library')\n")
    text = "import random\nfrom beside_it import VALUE\n\n\ndef beside(text, wanted):\n    return VALUE\n"
    import_user_file(written(tmp_path / "main_one.py", text))
    assert find_metric("beside").grades("", "") == {"beside": 0.5}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nx = (\n", ":2: not Python ('(' was never closed); correct this line"),
        ("def f():\nreturn 1\n", ":2: not Python"),
        ("x = 1\n\ny = missing\n", ":3: NameError: name 'missing' is not defined; the file must run"),
        ("import nothing_of_this_name\n", ":1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def f():\n    raise OSError('a\\nb')\n\n\nf()\n", ":2: OSError: a b; the file must run"),
        ("import json\njson.loads('{')\n", ":2: JSONDecodeError: Expecting property name"),
        ("import sys\nsys.exit(3)\n", ":2: it ends the process; put what is not to be imported under if __name__"),
        ("1\x002\n", ": not Python ("),
        ("x = '\udcff'\n", ":1: not Python ("),
        ("from . import other\n", ":1: ImportError: attempted relative import"),
        ("raise BaseException('all')\n", ":1: BaseException: all"),
    ],
)
def test_a_file_that_fails_is_told_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    """Whatever a file raises while it runs, or why it is no Python: one line, which begins with the path as given."""
    path = tmp_path / "wrong.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserCodeError) as error:
        import_user_file(path)
    assert str(error.value).startswith(f"{path}{told}") and "\n" not in str(error.value)
    assert user_files() == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.py", "none.py: No such file or directory; give a file of Python, such as mine.py"),
        ("mine.txt", "mine.txt: not a file of Python by its name; give a file that ends in .py"),
        ("folder.py", "folder.py: Is a directory; give a file of Python"),
        ("", "not a file of Python by its name"),
    ],
)
def test_what_is_no_file_of_python_is_refused(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "mine.txt").write_text("x = 1")
    with pytest.raises(UserCodeError) as error:
        import_user_file(name)
    assert told in str(error.value)


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    """A scorer, codec, workload or replacement policy of another file or of kvlab with the same name, in any file."""
    with pytest.raises(UserCodeError, match=r"taken.py: Mine is named 'snapkv', as is kvlab.policies.*SnapKV"):
        import_user_file(written(tmp_path / "taken.py", GOOD.replace("NAME", "snapkv")))
    workload = "from kvlab.workloads import Workload\n\n\nclass Talk(Workload):\n    name = 'chat'\n"
    with pytest.raises(UserCodeError, match=r"Talk is named 'chat', as is kvlab.workloads.chat.Chat"):
        import_user_file(written(tmp_path / "talk.py", workload))
    lru = "from kvlab.store.replacement.lru import Lru\n\n\nclass Mine(Lru):\n    name = 'sieve'\n"
    with pytest.raises(UserCodeError, match="Mine is named 'sieve'"):
        import_user_file(written(tmp_path / "mine.py", lru))
    import_user_file(good(tmp_path, "mine_b"))
    with pytest.raises(UserCodeError, match=r"other.py: Mine is named 'mine_b', as is kvlab_user_file_.*.Mine"):
        import_user_file(written(tmp_path / "other.py", GOOD.replace("NAME", "mine_b")))
    assert [Path(file.path).name for file in user_files()] == ["mine_b.py"]
    failing = GOOD.replace("NAME", "mine_x") + "missing\n"
    with pytest.raises(UserCodeError, match="NameError"):
        import_user_file(written(tmp_path / "failing.py", failing))
    modules = {info.name: info.summary for info in registry()}
    assert "Mine" not in type(Policy.parse("snapkv").retention).__name__ and "mine_x" not in modules
    assert type(load_workload("chat")).__name__ == "Chat" and type(make("sieve", 4)).__name__ == "Sieve"
    good(tmp_path, "mine_c")
    import_user_file(written(tmp_path / "uses.py", "from mine_c import Mine\n"))
    import_user_file(tmp_path / "mine_c.py")  # the same file under another name


def test_a_metric_of_two_files_or_of_kvlab_s_name_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    metric = "def f1(text, wanted):\n    return 0\n\n\ndef twice(text, wanted):\n    return 1\n"
    first = import_user_file(written(tmp_path / "first.py", metric))
    with pytest.raises(WorkloadError, match=f"metric 'f1' is in kvlab and in {first.path}; give one of them"):
        find_metric("f1")
    second = import_user_file(written(tmp_path / "second.py", metric))
    with pytest.raises(WorkloadError, match=f"metric 'twice' is in {first.path} and in {second.path}"):
        find_metric("twice")


def test_an_experiment_file_names_the_files_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = good(tmp_path, "mine_d")
    toml = 'imports = ["mine_d.py"]\nworkload = "mine_d-asked"\nmetrics = ["mine_d_close"]\npolicies = ["mine_d"]\n'
    experiment = read_experiment(written(tmp_path / "e.toml", toml))
    (cell,) = experiment.cells()
    assert cell.imports == (import_user_file(path),) and cell.content()["imports"] == [cell.imports[0].sha256]
    again = written(tmp_path / "again.toml", toml.replace('imports = ["mine_d.py"]\n', ""))
    assert read_experiment(again, ["mine_d.py"]).cells()[0].id == cell.id
    written(path, path.read_text() + "\n# changed\n")
    assert experiment.cells()[0].id != cell.id
    with pytest.raises(KvlabError, match=r"e.toml: wrong.py:1: not Python"):
        written(tmp_path / "wrong.py", "x = (")
        read_experiment(written(tmp_path / "e.toml", toml.replace("mine_d.py", "wrong.py")))
    with pytest.raises(KvlabError, match="imports is 'mine_d.py'; write a list in brackets"):
        read_experiment(written(tmp_path / "e.toml", toml.replace('["mine_d.py"]', '"mine_d.py"')))


def test_the_commands_know_what_a_file_defines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = good(tmp_path, "mine_e")
    assert main(["policies", "--import", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    (mine,) = [row for row in rows if row["name"] == "mine_e"]
    assert mine["slot"] == "retention" and mine["parameters"]["last"] == 7


@pytest.mark.parametrize(
    "command", [["policies"], ["compare", "--policies", "full", "--workload", "chat"], ["serve"], ["ask", "Well?"]]
)
def test_a_command_tells_a_wrong_file_in_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "wrong.py", "x = 1\ny = missing\n")
    assert main([*command, "--import", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (
        not out
        and err == f"kvlab: {path}:2: NameError: name 'missing' is not defined; the file must run from top to bottom\n"
    )


def test_kvlab_run_imports_for_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = written(tmp_path / "e.toml", 'workload = "chat"\npolicies = ["mine_f"]\n')
    with pytest.raises(KvlabError, match="unknown policy 'mine_f'"):
        run_command(toml, tmp_path / "out", progress=False)
    wrong = written(tmp_path / "wrong.py", "raise ValueError\n")
    assert main(["run", str(toml), "--import", str(wrong)]) == 2
    assert f"kvlab: {toml}: {wrong}:1: ValueError" in capsys.readouterr().err


def test_another_process_imports_the_same_file_under_the_same_name(tmp_path: Path) -> None:
    path = good(tmp_path, "mine_g")
    file = import_user_file(path)
    policy = pickle.dumps(Policy.parse("mine_g:last=3"))
    code = (
        "import pickle, sys\nfrom kvlab.importing import UserFile, import_again\n"
        f"import_again(UserFile({file.path!r}, {file.sha256!r}))\nprint(pickle.loads({policy!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout == "mine_g:last=3\n", done.stderr
    assert UserFile(**{"path": file.path, "sha256": file.sha256}) == file
