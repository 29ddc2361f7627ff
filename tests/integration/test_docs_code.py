"""Every block of code in the README and the docs does what it says, or at least is a command that exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from kvlab.cli import cli
from kvlab.sweeps.experiment import read_experiment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(kind, text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (kind, text) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.S | re.M))
]


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_a_block_of_code_is_right(kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    if kind == "python":
        monkeypatch.chdir(tmp_path)
        exec(compile(text, "block", "exec"), {})  # noqa: S102 - the project's own words
    elif kind == "toml":
        read_experiment(_written(tmp_path / "mine.toml", text))
    elif kind in ("sh", "bash"):
        for words in _commands(text):
            _check(words)
    else:
        pytest.fail(f"nothing here knows how to try a block of {kind}")


def _written(path: Path, text: str) -> Path:
    tomllib.loads(text)
    path.write_text(text)
    return path


def _commands(text: str) -> list[list[str]]:
    """The words of every call of kvlab, each from behind the program's name."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|(?!\w)", re.sub(r"\s#\s.*", "", line)):
            words = shlex.split(part)
            if "kvlab" in words:
                found.append(words[words.index("kvlab") + 1 :])
    return found


def _check(words: list[str]) -> None:
    """The command and its options exist and its values can be read; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, info_name="kvlab")
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        inner = command.get_command(context, name)
        assert inner is not None, f"there is no kvlab {name}"
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    command.parse_args(context, list(words))
