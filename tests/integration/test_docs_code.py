"""Every block of code in the README and the docs is run, page by page and from top to bottom, as a reader would.

A block that cannot be run here has a comment in front of it, `<!-- not run: the reason -->`; of its commands
kvlab's own must still exist, with these options. `<!-- file: NAME -->` says where the reader keeps a block.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from kvlab.cli.main import cli
from kvlab.experiments.config import read_experiment
from tests.processes import environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "figures" / "README.md"]
FENCE = re.compile(
    r"(?:<!-- (?P<note>(?:not run|setup|file): [^\n]*?) -->\n)?^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``note`` says why it is not run, empty where it is."""

    kind: str
    text: str
    note: str


def blocks(page: Path) -> list[Block]:
    return [Block(found["kind"], found["text"], found["note"] or "") for found in FENCE.finditer(page.read_text())]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "experiments").symlink_to(ROOT / "experiments")
    said: str | None = None
    for block in blocks(page):
        before, said = said, None
        if block.note.startswith("file: "):
            (folder / block.note.removeprefix("file: ")).write_text(block.text)
        if block.kind == "python":
            assert not block.note or block.note.startswith("file: "), "a block of Python runs anywhere"
            said = _run(["-c", block.text], folder)
        elif block.kind == "sh":
            commands = _commands(block.text)
            assert commands or block.note, "only commands of kvlab are run: say why this block is not"
            for words in commands:
                _check(words) if block.note else _run(["-m", "kvlab", *words], folder)
        elif block.kind == "toml":
            read_experiment(_written(folder / "mine.toml", block.text))
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "jsonl":
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        elif block.kind == "text":  # behind a block of Python, what it prints
            assert before is None or before == block.text
        else:
            pytest.fail(f"nothing here knows how to try a block of {block.kind or 'no language'}")


def test_every_fence_is_found() -> None:
    for page in PAGES:
        assert 2 * len(blocks(page)) == len(re.findall(r"^\s*```", page.read_text(), re.M)), name(page)


def test_every_reason_says_something() -> None:
    notes = [block.note for page in PAGES for block in blocks(page) if block.note]
    assert notes
    assert all(re.fullmatch(r"setup: (run|test)|file: [\w.]+|not run: \w.{9,}", note) for note in notes)


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


def _run(words: list[str], folder: Path) -> str:
    """What Python prints in a process of its own, which must end well."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    assert "BackendWarning" not in done.stderr, done.stderr
    return done.stdout


def _check(words: list[str]) -> None:
    """The command and its options exist and its values can be read; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, info_name="kvlab")
    while isinstance(command, click.Group):
        called, words = words[0], words[1:]
        inner = command.get_command(context, called)
        assert inner is not None, f"there is no kvlab {called}"
        command, context = inner, click.Context(inner, info_name=called, parent=context)
    command.parse_args(context, list(words))
