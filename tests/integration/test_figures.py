"""The figures of the docs follow from the rows beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from kvlab.cli.main import main
from kvlab.figures.build import build, measured, read_manifest, source_tree
from kvlab.figures.check import check, contradictions
from kvlab.figures.declared import FIGURES
from kvlab.figures.draw import RENDERER
from kvlab.figures.pages import check_pages, named_in


def test_figures_pages_and_claims_follow_from_the_committed_rows() -> None:
    """Whether the rows are of the code as it is now, which takes a quarter of an hour to mend, is `kvlab figures
    --check` to say, and no test of a change."""
    place = source_tree()
    figures = measured(FIGURES, place.rows)
    assert len(figures) >= 7
    assert check(figures, place) == []
    assert check_pages(figures, place) == []
    assert contradictions(figures, place, fresh=False) == []


def test_readme_and_the_front_page_take_their_numbers_from_the_rows() -> None:
    pages = {page.name: named_in([page]) for page in source_tree().pages}
    assert len(pages["README.md"]) >= 10 and len(pages["index.md"]) >= 10
    told = (source_tree().experiments.parent / "README.md").read_text().split("## Set up")[0]
    for line in told.splitlines():
        if line.startswith("- **"):
            by_hand = re.findall(r"\d+\.\d+", re.sub(r"<!-- figure: .*?<!-- /figure -->", "", line))
            assert not by_hand, f"{line}: write numbers with a comment that names them"


def test_check_says_whether_the_rows_are_of_this_code(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["figures", "--check", "--only", "eviction-map"])
    lines = capsys.readouterr().err.splitlines()
    assert status == (1 if lines else 0)
    assert all("make them anew: kvlab figures --rerun --only eviction-map" in line for line in lines)


def test_built_anew_they_are_the_same_bytes(tmp_path: Path) -> None:
    place = source_tree()
    elsewhere = dataclasses.replace(place, pictures=tmp_path)
    figures = measured(FIGURES, place.rows)
    build(figures, elsewhere, progress=False)
    manifest = read_manifest(place.pictures)
    assert set(manifest) == {figure.name for figure in figures}
    same = all(about["renderer"] == RENDERER for about in manifest.values())
    for figure in figures:
        assert read_manifest(tmp_path)[figure.name]["chart"] == manifest[figure.name]["chart"]
        if same:  # another version of the renderer may set text elsewhere
            ours, theirs = ((folder / f"{figure.name}.svg").read_bytes() for folder in (tmp_path, place.pictures))
            assert ours == theirs, figure.name


FOLDER = re.compile(r"(?:^|[^\w])[~.]{0,2}/\w|[A-Za-z]:\\\\")
"""The beginning of a path; ``kvzip/648`` is none."""


def test_saved_rows_hold_no_folders_and_stay_small() -> None:
    files = list(source_tree().rows.iterdir())
    assert files
    large = {
        "stack.csv": 1_500_000,
        "stack_smollm2.csv": 500_000,
        "tools.csv": 2_000_000,
        "methods_tools.csv": 250_000,
        "methods_needle_bundled.csv": 450_000,
    }  # a row for each request of many
    for path in files:
        assert path.stat().st_size < large.get(path.name, 200_000), path.name
        if path.suffix == ".json":
            facts = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("blas", "code")}
            assert not any(FOLDER.search(str(value)) for value in facts.values())
