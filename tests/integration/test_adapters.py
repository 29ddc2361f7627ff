"""Adapters: loaded with the model, wherever a model is named; their KV is never the clean model's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from kvlab.bench.request_times import no_end
from kvlab.cli import main
from kvlab.decoder import Decoder
from kvlab.errors import KvlabError, ModelError, RunError
from kvlab.experiments.run import Run, compare
from kvlab.models import LoadedModel, ModelSource, bundled_path, load
from kvlab.results.promote import serve_line
from kvlab.server.notebook import with_adapters
from tests.adapters import KINDS, write_adapter
from tests.helpers import FOUR_BITS, Weights, random_model_folder
from tests.model_changes import add_adapter
from tests.server_kit import Local

PROMPT = [5 + (7 * i) % 240 for i in range(120)]
BASES = {"float32": Weights(), "bfloat16": Weights("bfloat16"), "4 bits": FOUR_BITS[0]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: random_model_folder("llama", root / name, weights=weights) for name, weights in BASES.items()}


def answer(loaded: LoadedModel, policy: str, prompt: Sequence[int] = PROMPT) -> Any:
    with Decoder(loaded, policy) as decoder:
        return decoder.generate(prompt, max_tokens=8, logits_processors=[no_end(loaded)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_an_adapter_computes_what_mlx_lm_computes_with_it(
    base: str, kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    if (base, kind) == ("4 bits", "full"):
        pytest.skip("mlx_lm.lora trains no whole weights of a quantized model")
    folder = write_adapter(bases[base], tmp_path / "mine", kind)
    loaded, clean = load(bases[base], adapter=folder, dequantize=False), load(bases[base], dequantize=False)
    network, _ = mlx_lm.load(str(bases[base]), adapter_path=str(folder))
    if loaded.dtype == "float32":
        network.set_dtype(mx.float32)
    wanted, got = (np.array(model(mx.array([PROMPT])).astype(mx.float32)) for model in (network, loaded.model))
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(np.array(clean.model(mx.array([PROMPT])).astype(mx.float32)) - wanted).max() > 0.1
    assert loaded.fingerprint != clean.fingerprint
    assert loaded.fingerprint == load(bases[base], adapter=folder, dequantize=False).fingerprint
    assert (loaded.name, loaded.adapter) == (f"{base}+mine", folder)
    assert loaded.argument == clean.argument == str(bases[base])


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_over_4_bits_gives_the_same_logits_with_expanded_weights(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_adapter(bases["4 bits"], tmp_path / "mine", kind)
    packed, dense = (load(bases["4 bits"], adapter=folder, dequantize=how, dtype="float32") for how in (False, True))
    wanted, got = (np.array(loaded.model(mx.array([PROMPT]))) for loaded in (packed, dense))
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
    assert (packed.dequantized, dense.dequantized) == (False, True)
    assert packed.fingerprint != dense.fingerprint


@pytest.mark.parametrize("base", BASES)
def test_clean_and_adapted_models_share_a_store_and_no_block(base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    adapters = [None, *(write_adapter(bases[base], tmp_path / kind, kind) for kind in ("lora", "dora"))]
    policy = f"tiered:dir={tmp_path / 'store'}"
    wanted = []
    for adapter in adapters:
        loaded = load(bases[base], adapter=adapter)
        first = answer(loaded, policy)
        assert (first.cached_tokens, first.miss) == (0, "never_seen")
        steps = generate_step(mx.array(PROMPT), loaded.model, max_tokens=8, logits_processors=[no_end(loaded)])
        wanted.append(tuple(int(token) for token, _ in steps))
        if loaded.dtype == "float32":
            assert first.tokens == wanted[-1]
    assert len(set(wanted)) == len(adapters)
    for adapter, tokens in zip(adapters, wanted, strict=True):
        again = load(bases[base], adapter=adapter)
        second = answer(again, policy)
        assert second.cached_tokens >= len(PROMPT) - 32
        if again.dtype == "float32":
            assert second.tokens == tokens


def test_an_adapter_that_is_loaded_equals_the_same_layers_made_by_hand(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = write_adapter(bases["float32"], tmp_path / "mine")
    by_hand = load(bases["float32"])
    add_adapter(by_hand.model)
    assert by_hand.fingerprint == load(bases["float32"], adapter=folder).fingerprint


def test_layers_that_an_adapter_has_no_weights_for_are_the_same_at_every_load(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_adapter(bases["float32"], tmp_path / "mine")
    weights: Any = mx.load(str(folder / "adapters.safetensors"))
    few = {name: array for name, array in weights.items() if ".layers.1." in name}
    mx.save_safetensors(str(folder / "adapters.safetensors"), few)
    prints = {load(bases["float32"], adapter=folder).fingerprint for _ in range(2)}
    assert len(prints) == 1


# -- what is no adapter -----------------------------------------------------------------------------------------------


def wrong_adapters(base: Path, root: Path) -> dict[str, tuple[Path, str]]:
    """Folders that are none, and what the error says."""
    made = {kind: write_adapter(base, root / kind) for kind in ("no weights", "peft", "no json", "no rank", "other")}
    (made["no weights"] / "adapters.safetensors").unlink()
    (made["peft"] / "adapters.safetensors").rename(made["peft"] / "adapter_model.safetensors")
    (made["no json"] / "adapter_config.json").write_text("{")
    said = {"num_layers": 2, "lora_parameters": {"scale": 2.0, "dropout": 0.0}}
    (made["no rank"] / "adapter_config.json").write_text(json.dumps(said))
    mx.save_safetensors(str(made["other"] / "adapters.safetensors"), {"model.layers.7.lora_a": mx.zeros((2, 2))})
    cut = write_adapter(base, root / "cut")
    (cut / "adapters.safetensors").write_bytes((cut / "adapters.safetensors").read_bytes()[:100])
    little = write_adapter(base, root / "little", lora_parameters=None)
    return {
        "missing": (root / "nowhere", "does not exist; give the folder with adapter_config.json"),
        "a file": (base / "config.json", "is a file"),
        "no weights": (made["no weights"], "has no adapters.safetensors"),
        "a model": (base, "has no adapter_config.json and no adapters.safetensors"),
        "PEFT": (made["peft"], "in the format of PEFT"),
        "no JSON": (made["no json"], "is no JSON file"),
        "no rank": (made["no rank"], "lacks 'rank' in lora_parameters"),
        "another model's": (made["other"], "does not fit this model"),
        "cut": (cut, "does not fit this model"),
        "no parameters": (little, "has no num_layers and lora_parameters"),
    }


def test_what_is_no_adapter_is_one_line_that_says_what_to_give(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, (folder, says) in wrong_adapters(bases["float32"], tmp_path).items():
        with pytest.raises(ModelError) as caught:
            load(bases["float32"], adapter=folder)
        assert says in str(caught.value), what
        assert "\n" not in str(caught.value)
        arguments = ["--model", str(bases["float32"]), "--adapter", str(folder)]
        assert main(["doctor", *arguments]) == 2
        assert main(["compare", "--policies", "full", "--workload", "chat", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 2 and all(says in line for line in lines), what


def test_models_and_adapters_are_given_in_the_same_order() -> None:
    assert with_adapters(["a", "b"], []) == ["a", "b"]
    assert with_adapters(["a", "b"], ["none", "c"]) == ["a", ModelSource("b", "c")]
    with pytest.raises(KvlabError, match="2 models and 1 adapter; write one --adapter a --model"):
        with_adapters(["a", "b"], ["c"])


def test_a_loaded_model_takes_no_further_adapter(bundled: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"is loaded already; write kvlab\.load\(\.\.\., adapter="):
        Run("full", model=bundled, adapter="mine").execute(progress=False)


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(bundled_path(), tmp_path_factory.mktemp("tiny") / "mine")


def test_compare_names_the_adapter_and_restarts_with_it(
    tiny_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--workload", "chat", "--turns", "2", "--adapter", str(tiny_adapter), "--out", str(tmp_path), "--json"]
    assert main(["compare", "--policies", "tiered", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in document["rows"]} == {"tiny+mine"}
    facts = document["provenance"]
    assert (facts["model"], facts["adapter"]) == ("tiny+mine", str(tiny_adapter))
    assert serve_line("tiered", facts) == f"kvlab serve --policy 'tiered' --adapter {tiny_adapter}"
    results = compare(["tiered"], "chat", adapter=tiny_adapter, turns=4, restart=True, progress=False)
    assert {row["value"] for row in results.rows if row["metric"] == "exact"} == {1.0}
    restarted = [row for row in results.rows if row["metric"] == "cached_tokens" and row["phase"] == "restart"]
    assert restarted and all(row["value"] > 0 for row in restarted)


def test_a_restart_of_a_model_that_only_this_process_has_is_refused() -> None:
    loaded = load()
    add_adapter(loaded.model)
    with pytest.raises(RunError, match="the model was changed after it was loaded"):
        compare(["tiered"], "chat", loaded, turns=2, restart=True, progress=False)


def test_an_experiment_file_varies_the_adapter(
    tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'policies = ["full"]\nworkload = "chat"\nturns = 1\n'
    Path("grid.toml").write_text(f'{text}[grid]\nadapter = ["", "{tiny_adapter}"]\n')
    assert main(["run", "grid.toml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["model"] for row in rows} == {"tiny", "tiny+mine"}
    Path("one.toml").write_text(f'{text}adapter = "{tiny_adapter}"\n')
    assert main(["run", "one.toml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["model"] for row in rows} == {"tiny+mine"}
    Path("wrong.toml").write_text(f'{text}adapter = "nowhere"\n')
    assert main(["run", "wrong.toml"]) == 2
    assert "the adapter 'nowhere' does not exist" in capsys.readouterr().err


def test_a_server_answers_with_the_adapter_under_its_name(tiny_adapter: Path) -> None:
    models = {"clean": "tiny", "tuned": ModelSource("tiny", tiny_adapter)}
    with Local("paged", models) as server:
        said = {}
        for name in models:
            body = {"model": name, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
            said[name] = server.post("/v1/chat/completions", body).json()
            assert said[name]["model"] == name
        for name in models:
            body = {"model": name, "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
            again = server.post("/v1/chat/completions", body).json()
            assert again["choices"][0]["message"] == said[name]["choices"][0]["message"]
    assert said["clean"]["choices"][0]["message"] != said["tuned"]["choices"][0]["message"]
    with Local("paged", ModelSource("tiny", tiny_adapter)) as server:
        assert [one["id"] for one in server.get("/v1/models").json()["data"]] == ["tiny+mine"]
