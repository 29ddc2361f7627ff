"""Systems beside policies in comparisons and experiment files: their names in rows, their settings at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab.errors import RunError
from kvlab.experiments import conversations
from kvlab.experiments.config import read_experiment
from kvlab.experiments.run import Run, compare
from kvlab.figures.relevant_code import relevant_code
from kvlab.models import LoadedModel
from kvlab.results.promote import serve_line
from kvlab.systems import System
from tests.fake_decoder import FakeDecoder

ARTICLE = "mlx-lm:variant=article"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDecoder.disk = {}
    FakeDecoder.configs = []
    monkeypatch.setattr(conversations, "Decoder", FakeDecoder)


def test_rows_carry_the_systems_name_and_the_decoder_its_settings(qwen3: LoadedModel) -> None:
    system = System.parse(ARTICLE)
    results = compare(["paged", system], "chat", qwen3, turns=2, progress=False)
    assert results.policies == ["paged", ARTICLE]
    assert results.labels() == {"paged": "paged", ARTICLE: ARTICLE}
    assert results.provenance["systems"] == {ARTICLE: system.settings}
    exact = [r["value"] for r in results.rows if r["policy"] == ARTICLE and r["metric"] == "exact"]
    assert exact == [1.0, 1.0]
    assert system.config in FakeDecoder.configs
    assert serve_line(ARTICLE, results.provenance).startswith(f"kvlab serve --system '{ARTICLE}'")
    assert serve_line("paged", results.provenance).startswith("kvlab serve --policy 'paged'")


def test_a_run_takes_a_system_by_its_name(qwen3: LoadedModel) -> None:
    results = Run("full", "chat", qwen3, turns=2, system="mlx-lm").execute(progress=False)
    assert results.policies == ["mlx-lm"]


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.toml").write_text(text)
    return tmp_path / "mine.toml"


def test_an_experiment_file_has_systems_beside_policies(tmp_path: Path) -> None:
    path = written(tmp_path, 'policies = ["full"]\nsystems = ["mlx-lm", "llama.cpp:parallel=2"]\nworkload = "chat"\n')
    cells = read_experiment(path).cells()
    assert [cell.policy for cell in cells] == ["full", "mlx-lm", "llama.cpp:parallel=2"]
    assert len({cell.id for cell in cells}) == 3
    assert not {"settings", "system"} & set(cells[0].content())
    assert cells[2].content()["settings"]["reuse.n"] == "2"


def test_code_that_carries_a_system_out_counts_for_its_figures(tmp_path: Path) -> None:
    code = relevant_code(written(tmp_path, 'systems = ["vmlx"]\nworkload = "chat"\n'))
    assert {"kvlab.decoder.reuse.paged", "kvlab.policies.reuse", "kvlab.store.ssd.tier"} <= set(code)


def test_a_file_needs_policies_or_systems(tmp_path: Path) -> None:
    assert len(read_experiment(written(tmp_path, 'systems = ["mlx-lm"]\n')).cells()) == 1
    with pytest.raises(RunError, match=r'write policies = \["full", "tiered"\], or systems = \["omlx"\]'):
        read_experiment(written(tmp_path, "turns = 2\n"))
    with pytest.raises(RunError, match="is part of that system: leave share_prompts out"):
        read_experiment(written(tmp_path, 'systems = ["mlx-lm"]\nshare_prompts = "1GB"\n'))
    with pytest.raises(RunError, match="in place of mlx-lm write its policy, 'prompts'"):
        read_experiment(written(tmp_path, 'systems = ["mlx-lm"]\nworkload = "tools"\n'))
