"""Figures: claims, saved rows, what a check finds, on small figures made by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import kvlab
from kvlab import charts
from kvlab.cli.main import main
from kvlab.errors import RunError
from kvlab.experiments import conversations, runner
from kvlab.experiments.config import read_experiment
from kvlab.figures import command, declared
from kvlab.figures import saved as saved_rows
from kvlab.figures.build import Place, build, rerun
from kvlab.figures.check import check, contradictions
from kvlab.figures.claim import Claim, pick
from kvlab.figures.draw import svg_of
from kvlab.figures.figure import Figure
from kvlab.figures.relevant_code import relevant_code
from kvlab.figures.saved import Saved
from kvlab.figures.script import Script
from kvlab.figures.stale import stale
from kvlab.models import LoadedModel
from kvlab.results import Results, row, units
from tests.chart_kit import evicted
from tests.fake_decoder import FakeDecoder
from tests.unit.test_experiments import in_this_process

FACTS = {"commit": "0123456789abcdef", "device": "cpu: one", "model": "tiny", "dtype": "float32", "folder": "/secret"}


def some_rows(tiered: float = 10.0) -> pl.DataFrame:
    made = [
        row(policy, "agent", "ttft_ms", value * turn + repeat, turn=turn, phase="cold", seed=0, repeat=repeat)
        for policy, value in (("full", 100.0), ("tiered", tiered))
        for turn in (1, 2)
        for repeat in (0, 1)
    ]
    return Results([*made, row("full", "agent", "accuracy", 1.0, turn=1)], {}).frame()


SMALL = Claim(
    "tiered is fast", pick("ttft_ms", policy="tiered", turn=2), pick("ttft_ms", policy="full", turn=2), at_most=0.2,
    tolerance=0.5,
)  # fmt: skip
FIGURE = Figure(
    "small", "A small one", ("some",), lambda saved: charts.ttft_by_turn(saved.rows), frozenset({"ttft_ms"}), (SMALL,),
    "How to read it.",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place.of(tmp_path)
    saved_rows.write(place.rows, "some", Saved(some_rows(), FACTS), FIGURE.needs())
    build([FIGURE], place, progress=False)
    return place


def test_a_claim_is_judged_to_the_bound_and_a_fresh_run_to_its_tolerance() -> None:
    assert SMALL.judge(some_rows(20)).value == pytest.approx(40.5 / 200.5)
    for value, saved, fresh in ((10, True, True), (20, False, False), (25, False, True), (31, False, False)):
        rows = some_rows(value)
        verdicts = SMALL.judge(rows), SMALL.judge(rows, fresh=True)
        if value != 20:
            assert tuple(v.holds for v in verdicts) == (saved, fresh), value
    low = Claim("more", pick("ttft_ms", policy="full", turn=1), at_least=110, tolerance=0.1)
    assert not low.judge(some_rows()).holds and low.judge(some_rows(), fresh=True).holds
    assert (low.unit, SMALL.unit) == ("ms", "x")
    assert str(SMALL.judge(some_rows())) == "tiered is fast: measured 0.102x (at most 0.2x, tolerance 50%)"


def test_claims_that_cannot_be_judged() -> None:
    with pytest.raises(RunError, match="no bound"):
        Claim("nothing", pick("ttft_ms"))
    with pytest.raises(RunError, match="no rows of ttft_ms policy=paged"):
        Claim("x", pick("ttft_ms", policy="paged"), at_most=1).judge(some_rows())
    with pytest.raises(RunError, match="no column 'who'"):
        Claim("x", pick("ttft_ms", who=1), at_most=1).judge(some_rows())
    zero = Results([row("full", "agent", "accuracy", 0)], {}).frame()
    with pytest.raises(RunError, match="cannot be divided"):
        Claim("x", pick("accuracy"), pick("accuracy"), at_most=1).judge(zero)


def test_saved_rows_are_text_that_comes_back(tmp_path: Path) -> None:
    rows = some_rows().with_columns(value=pl.col("value") + 1 / 3)
    events = {"evicted": pl.DataFrame({"policy": ["rotating:window=4,sinks=2"], "start": [4], "stop": [9]})}
    saved_rows.write(tmp_path, "some", Saved(rows, FACTS, events), {"ttft_ms"})
    back = saved_rows.read(tmp_path, ["some"])
    assert back.rows.columns == rows.columns and back.rows.height == 8, "only the metrics that are needed"
    assert back.rows["value"].to_list() == pytest.approx(rows.head(8)["value"].to_list(), rel=1e-5)
    assert back.event("evicted").rows() == [("rotating:window=4,sinks=2", 4, 9)]
    assert "folder" not in back.provenance and back.provenance["commit"] == FACTS["commit"]
    first = (tmp_path / "some.csv").read_text()
    saved_rows.write(tmp_path, "some", back, {"ttft_ms"})
    assert (tmp_path / "some.csv").read_text() == first
    with pytest.raises(RunError, match="no 'token' events"):
        back.event("token")


def test_rows_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no saved rows of some .* kvlab figures --rerun"):
        saved_rows.read(tmp_path, ["some"])
    saved_rows.write(tmp_path, "some", Saved(some_rows(), FACTS), {"ttft_ms"})
    text = (tmp_path / "some.csv").read_text()
    (tmp_path / "some.csv").write_text(text.replace(",100,", ",a hundred,"))
    with pytest.raises(RunError, match="cannot be read"):
        saved_rows.read(tmp_path, ["some"])


def test_a_figure_is_files_and_a_line_in_the_manifest(place: Place) -> None:
    assert {path.name for path in place.pictures.iterdir()} == {
        "small.svg", "small.png", "small.html", "figures.json", "README.md",
    }  # fmt: skip
    svg = (place.pictures / "small.svg").read_text()
    assert svg.startswith("<svg") and "commit 0123456789ab" in svg and "cpu: one" in svg
    assert (place.pictures / "small.png").read_bytes().startswith(b"\x89PNG")
    page = (place.pictures / "small.html").read_text()
    assert "<script src" not in page and "tiered is fast" in page
    caption = json.loads((place.pictures / "figures.json").read_text())["small"]["caption"]
    assert "measured 0.102x" in caption and "2 repeats and 1 seed" in caption and "model tiny" in caption
    assert caption in (place.pictures / "README.md").read_text()


def test_equal_rows_give_equal_bytes(place: Place) -> None:
    before = {path.name: path.read_bytes() for path in place.pictures.iterdir()}
    for path in place.pictures.iterdir():
        path.unlink()
    build([FIGURE], place, progress=False)
    assert {path.name: path.read_bytes() for path in place.pictures.iterdir()} == before


def test_clip_paths_are_numbered_within_a_picture() -> None:
    spec = charts.eviction_map(evicted()).to_dict()
    assert svg_of(spec) == svg_of(spec) and 'id="clip1"' in svg_of(spec)


def test_check_finds_nothing_where_nothing_is_wrong(place: Place) -> None:
    assert check([FIGURE], place) == [] and contradictions([FIGURE], place, fresh=False) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("experiments/rows/some.csv", ",ttft_ms,100,", ",ttft_ms,150,", "the rows give another chart"),
        ("docs/figures/small.svg", "Time to first token", "Time to last token", "small.svg was altered"),
        ("docs/figures/small.png", None, None, "small.png is missing"),
        ("docs/figures/README.md", "0.102x", "0.002x", "README.md of the figures is not"),
        ("docs/figures/figures.json", "0.102x", "0.002x", "another caption"),
        ("docs/figures/figures.json", '"small"', '"other"', "never built"),
        ("experiments/rows/some.json", "0123456789abcdef", "fedcba9876543210", "another chart"),
        ("experiments/rows/some.csv", None, None, "no saved rows"),
    ],
)
def test_check_finds_what_was_altered(file: str, old: str | None, new: str | None, says: str, place: Place) -> None:
    path = place.rows.parents[1] / file
    if old is None or new is None:
        path.unlink()
    else:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    problems = check([FIGURE], place)
    assert any(says in problem for problem in problems), problems


def test_a_picture_and_its_hash_altered_together_are_found_by_the_same_renderer(place: Place) -> None:
    import hashlib

    svg = place.pictures / "small.svg"
    svg.write_text(svg.read_text().replace("Time to first", "Time to last"))
    manifest = json.loads((place.pictures / "figures.json").read_text())
    manifest["small"]["svg"] = hashlib.sha256(svg.read_bytes()).hexdigest()
    (place.pictures / "figures.json").write_text(json.dumps(manifest))
    assert any("another SVG" in problem for problem in check([FIGURE], place))
    manifest["small"]["renderer"] = "another one"
    (place.pictures / "figures.json").write_text(json.dumps(manifest))
    assert check([FIGURE], place) == []


def test_rows_that_contradict_a_claim_are_found(place: Place) -> None:
    saved_rows.write(place.rows, "some", Saved(some_rows(40), FACTS), FIGURE.needs())
    build([FIGURE], place, progress=False)
    assert check([FIGURE], place) == []
    (problem,) = contradictions([FIGURE], place, fresh=False)
    assert "small: the saved rows contradict it. tiered is fast: measured 0.401x" in problem
    assert "fresh run" in contradictions([FIGURE], place, fresh=True)[0]


@pytest.fixture
def faked(place: Place, qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """The commands over this place and this figure, whose experiment runs on a fake decoder: 1 ms a token."""
    FakeDecoder.disk = {}
    monkeypatch.setattr(conversations, "Decoder", FakeDecoder)
    monkeypatch.setattr(runner, "serve_in_new_process", in_this_process)
    monkeypatch.setattr(declared, "FIGURES", (FIGURE,))
    monkeypatch.setattr(command, "source_tree", lambda: place)
    monkeypatch.chdir(tmp_path)
    text = f'workload = "chat"\nturns = 2\npolicies = ["full", "tiered"]\nmodel = "{qwen3.path}"\nrepeats = 2\n'
    (place.experiments / "some.toml").write_text(text)
    made = Saved(some_rows(), {**FACTS, "code": relevant_code(place.experiments / "some.toml")})
    saved_rows.write(place.rows, "some", made, FIGURE.needs())
    return place


def test_rerun_writes_rows_and_pictures(faked: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (faked.rows / "some.csv").read_text()
    assert main(["figures", "--rerun"]) == 0
    assert (faked.rows / "some.csv").read_text() != before
    assert stale([FIGURE], faked.experiments, faked.rows) == []
    assert check([FIGURE], faked) == []
    assert not (Path("runs") / "figures").exists() or not list((Path("runs") / "figures").iterdir())


def test_rerun_and_check_leaves_the_tree_and_says_what_a_fresh_run_contradicts(
    faked: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in [*faked.rows.iterdir(), *faked.pictures.iterdir()]}
    wrong = dataclasses.replace(SMALL, at_most=1e-6)
    for claim, status in ((dataclasses.replace(SMALL, at_most=0.9), 0), (wrong, 1)):
        figure = dataclasses.replace(FIGURE, claims=(claim,))
        monkeypatch.setattr(declared, "FIGURES", (figure,))
        build([figure], faked, progress=False)
        before = {path: path.read_bytes() for path in [*faked.rows.iterdir(), *faked.pictures.iterdir()]}
        assert main(["figures", "--rerun", "--check"]) == status
        assert {path: path.read_bytes() for path in before} == before
    assert "the fresh run contradicts it. tiered is fast" in capsys.readouterr().err


def test_figures_elsewhere_leave_the_tree(faked: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in [*faked.rows.iterdir(), *faked.pictures.iterdir()]}
    out = tmp_path / "elsewhere"
    assert main(["figures", "--rerun", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (claim,) = document["rows"]
    assert (claim["figure"], claim["metric"], claim["unit"], claim["policy"]) == ("small", "ratio", "x", "tiered")
    assert (out / "small.svg").exists() and (out / "rows" / "some.csv").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_check_ends_with_status_1_and_lines_on_stderr(faked: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "--check"]) == 0
    (faked.pictures / "small.svg").write_text("<svg/>")
    capsys.readouterr()
    assert main(["figures", "--check", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "kvlab: small: small.svg was altered" in err
    assert "small.svg was altered" in json.loads(out)["problems"][0]


def test_check_ends_with_status_1_where_the_code_has_changed_since(
    faked: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((faked.rows / "some.json").read_text())
    code = facts["code"] | {"kvlab.decoder.scheduler": "0123456789ab"}
    (faked.rows / "some.json").write_text(json.dumps(facts | {"code": code}))
    assert main(["figures", "--check"]) == 1
    said = capsys.readouterr().err
    assert "changed since has kvlab.decoder.scheduler; make them anew: kvlab figures --rerun --only small" in said


def test_a_figure_that_was_never_measured_stops_no_other(
    faked: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = dataclasses.replace(FIGURE, name="new", experiments=("new",))
    monkeypatch.setattr(declared, "FIGURES", (FIGURE, new))
    text = (faked.experiments / "some.toml").read_text()
    (faked.experiments / "new.toml").write_text(text.replace('model = "', 'model = "/nowhere'))
    assert main(["figures", "--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "kvlab: new: it was never measured; kvlab figures --rerun --only new"
    ]
    assert main(["figures", "--rerun"]) == 1
    out, err = capsys.readouterr()
    assert "kvlab: new: it could not be measured: full on chat: no model" in err and "small: tiered is fast" in out
    assert main(["figures", "--rerun", "--only", "new"]) == 2, "the only one that is asked for"


def test_unknown_figures_and_installed_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no figure 'nothing'; the figures are ttft-by-turn"):
        declared.chosen(("nothing",))
    assert main(["figures", "--only", "nothing"]) == 2
    from kvlab.figures.build import source_tree

    monkeypatch.setattr("kvlab.figures.build.PACKAGE", tmp_path / "kvlab")
    with pytest.raises(RunError, match="in a clone"):
        source_tree()


def test_declared_figures_name_experiments_and_metrics_that_exist() -> None:
    root = Path(kvlab.__file__).parents[1]
    names = [figure.name for figure in declared.FIGURES]
    assert len(names) == len(set(names)) >= 6
    for figure in declared.FIGURES:
        assert figure.claims and figure.shows and figure.needs() <= set(units())
        policies: set[str] = set()
        for name in figure.experiments:
            path = root / "experiments" / f"{name}.toml"
            if Script.of(path):  # it names its policies itself
                policies |= set(saved_rows.read(path.parent / "rows", [name]).rows["policy"])
            else:
                policies |= {cell.policy for cell in read_experiment(path).cells()}
        for said in (*figure.claims, *figure.numbers.values()):
            picked = [said.of, *([said.to] if said.to else [])]
            assert all(one.where.get("policy", "") in {"", *policies} for one in picked), said


def test_rerun_keeps_the_metrics_of_all_figures_of_an_experiment(faked: Place, tmp_path: Path) -> None:
    other: Any = dataclasses.replace(FIGURE, name="other", metrics=frozenset({"cached_tokens"}), claims=())
    rerun([FIGURE, other], faked, tmp_path / "rows", tmp_path / "stores", progress=False)
    found = saved_rows.read(tmp_path / "rows", ["some"]).rows
    assert set(found["metric"]) == {"ttft_ms", "cached_tokens"} and set(found["repeat"]) == {0, 1}
