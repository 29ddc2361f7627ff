"""What the project promises about itself: two set-up commands, pins, and checks that run what the README says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("part", ["run", "test"])
def test_readme_has_one_command_for_each_setup(part: str) -> None:
    blocks = re.findall(rf"<!--\s*setup:\s*{part}\s*-->\s*```[a-z]*\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 1
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m pip install uv && python3 -m uv run ")


def test_ci_runs_the_readmes_test_command_and_stops_at_a_failure(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text("<!-- setup: test -->\n```sh\necho here && exit 3\n```\n")
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "\nhere\n" in done.stdout
    assert "ruff" not in done.stdout
    (tmp_path / "README.md").write_text("nothing\n")
    assert subprocess.run(["bash", str(script)], capture_output=True, timeout=60).returncode != 0


def test_ci_tests_the_decisions_of_a_mac_after_the_readmes_command_and_then_style_and_types(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "bin").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "README.md").write_text("<!-- setup: test -->\n```sh\necho the README\n```\n")
    # A stand-in for `python3 -m uv run ...` that says what it was asked, and with which backend.
    uv = tmp_path / "bin" / "python3"
    uv.write_text(f'#!/bin/sh\n[ "$1" = - ] && exec {sys.executable} -\nshift 3; echo "backend=$KVLAB_BACKEND $*"\n')
    uv.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    variables = {**os.environ, "PATH": path}
    variables.pop("KVLAB_BACKEND", None)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60, env=variables)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line and not line.startswith("$")]
    assert said[0] == "the README"
    mac, *others = said[1:]
    assert mac.startswith("backend=mlx pytest tests/unit tests/integration tests/zoo tests/acceptance/test_decoder")
    assert "tests/acceptance/test_server_clients.py" in mac
    assert others == ["backend= ruff check", "backend= ruff format --check", "backend= mypy"]


def test_fast_movers_are_pinned_and_mlx_is_one_version_everywhere(project: dict[str, Any]) -> None:
    extras = [item for extra in project["project"]["optional-dependencies"].values() for item in extra]
    named = [item for item in [*project["project"]["dependencies"], *extras] if re.match(r"mlx[\[=]", item)]
    assert len(named) == 4
    assert len({re.search(r"==([\d.]+)", item).group(1) for item in named}) == 1  # type: ignore[union-attr]
    assert any(re.match(r"mlx-lm==[\d.]+$", item) for item in project["project"]["dependencies"])


@pytest.mark.parametrize("extra", ["dask", "remote"])
def test_what_optional_parts_need_is_installed_with_the_tests_at_the_same_versions(
    project: dict[str, Any], extra: str
) -> None:
    assert set(project["project"]["optional-dependencies"][extra]) <= set(project["dependency-groups"]["dev"])


def test_docs_link_to_files_that_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
