"""The figures of the docs follow from the rows beside them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from kvlab.cli.main import main
from kvlab.figures.build import build, read_manifest, source_tree
from kvlab.figures.declared import FIGURES
from kvlab.figures.draw import RENDERER


def test_the_committed_figures_pass_their_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--check"]) == 0, capsys.readouterr().err
    assert "FAILS" not in capsys.readouterr().out


def test_built_anew_they_are_the_same_bytes(tmp_path: Path) -> None:
    place = source_tree()
    elsewhere = dataclasses.replace(place, pictures=tmp_path)
    build(FIGURES, elsewhere, progress=False)
    manifest = read_manifest(place.pictures)
    assert set(manifest) == {figure.name for figure in FIGURES}
    same = all(about["renderer"] == RENDERER for about in manifest.values())
    for figure in FIGURES:
        assert read_manifest(tmp_path)[figure.name]["chart"] == manifest[figure.name]["chart"]
        if same:  # another version of the renderer may set text elsewhere
            ours, theirs = ((folder / f"{figure.name}.svg").read_bytes() for folder in (tmp_path, place.pictures))
            assert ours == theirs, figure.name


def test_saved_rows_hold_no_folders_and_stay_small() -> None:
    files = list(source_tree().rows.iterdir())
    assert files
    for path in files:
        assert path.stat().st_size < 200_000, path.name
        if path.suffix == ".json":
            assert not any("/" in str(value) for key, value in json.loads(path.read_text()).items() if key != "blas")
