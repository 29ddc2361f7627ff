"""The documentation as a site: built as `docs/contributing.md` says, with no warning and no network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvlab
from kvlab.policies import parse_module
from tests.processes import environment

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Its sources are a copy, because the build puts the notebooks beside them."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("notebooks", "__pycache__"))
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "build", ".git"):
            (folder / entry.name).symlink_to(entry)
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "build/docs"],
        cwd=folder, env=environment(KVLAB_HOME=str(folder / "home")), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
    return folder / "build" / "docs"


def test_the_policy_reference_has_every_module_with_every_parameter(site: Path) -> None:
    parts = re.split(r'<section id="([\w-]+)">', (site / "policies.html").read_text())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    listed = subprocess.run(
        [sys.executable, "-m", "kvlab", "policies", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = json.loads(listed.stdout)["rows"]
    assert rows
    for module in rows:
        section = html.unescape(re.sub(r"<[^>]+>", "", sections[module["name"]]))
        cls = type(parse_module(module["name"]))
        assert f"kvlab.policies.{cls.__name__}" in section
        first = (cls.__doc__ or "").strip().splitlines()[0].replace("`", "")
        assert first in section
        for name, value in module["parameters"].items():
            row = re.search(rf"^{name}\n+(?P<type>.*)\n+(?P<default>.*)\n+(?P<meaning>.*)$", section, re.M)
            assert row, f"{module['name']} has no row for {name}"
            assert row["default"] == ("none" if value is None else str(value))
            assert row["meaning"], f"the docstring of {module['name']} does not say what {name} is"
        for number in re.findall(r"\d{4}\.\d{5}", module["paper"]):
            assert f"https://arxiv.org/abs/{number}" in sections[module["name"]]


def test_the_api_has_every_public_name(site: Path) -> None:
    found = set(re.findall(r'id="(kvlab[\w.]+)"', (site / "api.html").read_text()))
    assert {f"kvlab.{name}" for name in kvlab.__all__} <= found
    assert {"kvlab.store.Store", "kvlab.charts.ttft_by_turn", "kvlab.Decoder.submit"} <= found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_shown_with_its_pictures(site: Path, name: str) -> None:
    page = (site / "notebooks" / f"{name}.html").read_text()
    assert "<img" in page or "cell_output" in page
    assert "vegalite" not in page
    pictures = (ROOT / "notebooks" / f"{name}.ipynb").read_text().count('"image/png"')
    assert page.count("_images/") >= pictures


def test_every_page_is_in_the_sidebar_and_needs_no_network(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}.html"' in index or page.stem == "index", f"{page.name} is not in docs/generated.py"
    for path in site.rglob("*.html"):
        assert not re.search(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="(?:https?:)?//', path.read_text()), path.name


def test_the_front_page_on_github_links_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"]({page.name})" in text or page.stem == "index", f"{page.name} is not in docs/index.md"
