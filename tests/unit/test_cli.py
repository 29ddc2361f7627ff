"""The command line: lists of policies, exit statuses, and JSON that is nothing but JSON."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kvlab
from kvlab.backends import device
from kvlab.bench import gemm
from kvlab.cli.main import main, split_policies
from kvlab.errors import KvlabError, PolicyError
from kvlab.models import load
from kvlab.policies import parse_module, registry
from kvlab.policies.slots import inner_fields, known_modules
from tests.helpers import random_model_folder
from tests.quantized import quantize_folder

ROW = {"policy": "full", "workload": "agent", "metric": "exact", "value": 1.0, "unit": "bool"}


@pytest.mark.parametrize(
    ("texts", "specs"),
    [
        (["full"], ["full"]),
        (["full,paged,tiered"], ["full", "paged", "tiered"]),
        (["tiered:ram=2GB,ssd=20GB,replace=lru,paged"], ["tiered:ram=2GB,ssd=20GB,replace=lru", "paged"]),
        (["paged:block=64|quantized:bits=4,group=32,full"], ["paged:block=64|quantized:bits=4,group=32", "full"]),
        (["full,paged|tiered:ram=1GB,ssd=2GB|quantized"], ["full", "paged|tiered:ram=1GB,ssd=2GB|quantized"]),
        (["full", "tiered:ram=1GB,ssd=2GB"], ["full", "tiered:ram=1GB,ssd=2GB"]),
        (["full; tiered:ram=1GB,ssd=2GB ;paged"], ["full", "tiered:ram=1GB,ssd=2GB", "paged"]),
        ([" full , paged | quantized "], ["full", "paged | quantized"]),
        (["adakv(snapkv:window=8,kernel=3),full"], ["adakv(snapkv:window=8,kernel=3)", "full"]),
        (["tiered:ram=1GB,dir=/tmp/a:b=c,full"], ["tiered:ram=1GB,dir=/tmp/a:b=c", "full"]),
    ],
)
def test_policies_are_split_between_policies_not_parameters(texts: list[str], specs: list[str]) -> None:
    assert split_policies(texts) == specs


def test_every_module_with_every_parameter_survives_the_list() -> None:
    specs = []
    for info in registry():
        if not known_modules()[info.name].__module__.startswith("kvlab."):
            continue  # of another test
        wrapped = inner_fields(known_modules()[info.name])
        inside = ",".join(str(info.parameters[key]) for key in wrapped)
        values = {key: value for key, value in info.parameters.items() if key not in wrapped}
        given = ",".join(f"{key}={'none' if value is None else value}" for key, value in values.items())
        specs.append(info.name + (f"({inside})" if inside else "") + (f":{given}" if given else ""))
    assert split_policies([",".join(specs)]) == specs
    assert [str(parse_module(spec)) for spec in split_policies([",".join(specs)])]


@pytest.mark.parametrize("text", ["", "full,,paged", "full;", ",full"])
def test_an_empty_policy_in_the_list_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="an empty policy in the list"):
        split_policies([text])


def test_a_parameter_of_no_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="write name:block=64"):
        split_policies(["block=64,paged"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compare", "--workload", "agent"], "Missing option '--policies' or '--system'"),
        (["compare", "--workload", "agent", "--system", "omxl"], "unknown system 'omxl'"),
        (["compare", "--policies", "full"], "Missing option '--workload'"),
        (["compare", "--polices", "full"], "'--policies'"),
        (["compare", "--policies", "full", "--workload", "agent", "--turns", "0"], "'--turns'"),
        (["compare", "--policies", ",", "--workload", "agent"], "an empty policy"),
        (["nope"], "No such command 'nope'"),
        (["bench"], "Missing argument 'NAME'"),
        (["bench", "nope"], "no benchmark 'nope'; there are"),
        (["bench", "gemm", "--seed", "x"], "'x' is not a valid integer"),
        (["doctor", "--verbose"], "No such option"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("kvlab: ")
    assert says in err


def test_an_error_of_kvlab_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> None:
        raise KvlabError("first\n  second")

    monkeypatch.setattr(gemm, "run", fail)
    assert main(["bench", "gemm", "--json"]) == 2
    assert capsys.readouterr() == ("", "kvlab: first second\n")


def test_a_command_refuses_to_be_one_of_several_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    assert main(["policies"]) == 2
    assert "computes in one process" in capsys.readouterr().err


def test_interruption_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gemm, "run", interrupt)
    assert main(["bench", "gemm"]) == 130
    assert capsys.readouterr().err.strip() == "kvlab: stopped"


def test_json_is_alone_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(**_: Any) -> list[dict[str, Any]]:
        print("progress")
        return [{**ROW, "value": float("nan")}]

    monkeypatch.setattr(gemm, "run", chatty)
    assert main(["bench", "gemm", "--json", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "progress\n"
    assert (document["kvlab"], document["command"]) == (kvlab.__version__, "bench gemm")
    assert document["provenance"]["seed"] == 7
    assert {"commit", "mlx", "mlx_lm", "python", "device", "blas"} <= set(document["provenance"])
    assert document["rows"] == [{**ROW, "value": None}]


def test_a_measuring_command_prints_tidy_rows_and_nothing_else() -> None:
    command = [sys.executable, "-m", "kvlab", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["command"] == "doctor"
    for row in document["rows"]:
        assert {"policy", "workload", "metric", "value", "unit"} <= set(row)


def test_bench_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"policy": "full", "workload": "decode", "metric": "ratio", "unit": "x", "of": "kvlab", "to": "mlx-lm"}
    monkeypatch.setattr(gemm, "run", lambda **_: [{**measured, "value": 0.98765}])
    assert main(["bench", "gemm"]) == 0
    assert "0.988 x" in capsys.readouterr().out


def test_policies_lists_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == [info.name for info in registry()]
    assert all(set(row) == {"name", "slot", "parameters", "paper"} for row in rows)
    assert main(["policies"]) == 0
    text = capsys.readouterr().out
    assert all(info.name in text for info in registry())


def test_doctor_tells_what_one_needs_to_know(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "store").mkdir(exist_ok=True)
    (home / "store" / "block").write_bytes(bytes(1000))
    assert main(["doctor", "--json"]) == 0
    found = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    (home / "store" / "block").unlink()
    assert found["version_kvlab"]["value"] == kvlab.__version__
    assert found["version_mlx"]["value"] == "0.32.4"
    assert found["store"]["value"] == str(home / "store")
    assert found["store_bytes"]["value"] >= 1000
    assert found["home"]["value"] == str(home)
    assert found["device_memory"]["value"] > 1 << 30
    assert found["gemm_ratio"]["value"] > 0
    assert {"device", "blas", "blas_threads", "gemm_mlx_gflops", "gemm_numpy_gflops", "model"} <= set(found)


def test_doctor_says_what_it_makes_of_a_models_weights(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_model_folder("llama", tmp_path / "source")
    folder = quantize_folder(source, tmp_path / "q4", 64, 4)
    capsys.readouterr()  # mlx-lm's converter prints
    monkeypatch.setattr(device, "available_bytes", lambda: 1 << 40)
    monkeypatch.setattr(gemm, "compare", lambda *_, **__: [])
    monkeypatch.setattr(device, "computes_in_float32", lambda: True)
    monkeypatch.setattr(device, "is_slow_with_quantized_weights", lambda: True)
    assert main(["doctor", "--json", "--model", str(folder)]) == 0
    found = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert found["model"]["value"] == str(folder)
    assert found["model_fingerprint"]["value"] == load(folder).fingerprint
    assert found["dequantize"]["value"].endswith("KVLAB_DEQUANTIZE=0 prevents it")
    assert found["dequantize_needed"]["unit"] == "bytes"
    assert found["available_memory"]["value"] == 1 << 40
    assert main(["doctor", "--model", "nonesuch"]) == 2
    assert "no model 'nonesuch'" in capsys.readouterr().err


def test_compare_passes_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: dict[str, Any] = {}

    def compare_command(policies: list[str], workload: str, **options: Any) -> Any:
        asked.update(policies=policies, workload=workload, **options)
        print("a table")
        return SimpleNamespace(document=lambda command: {"command": command, "rows": [ROW]})

    fake = ModuleType("kvlab.experiments.run")
    fake.compare_command = compare_command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvlab.experiments.run", fake)
    arguments = [
        "--policies",
        "full,tiered:ram=1GB,ssd=2GB",
        "--policies",
        "paged",
        "--workload",
        "agent",
        "--turns",
        "3",
        "--n",
        "4",
        "--concurrency",
        "2",
        "--metric",
        "f1",
        "--metric",
        "contains",
        "--tokens",
        "900",
    ]
    assert main(["compare", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"command": "compare", "rows": [ROW]}
    assert err == "a table\n"
    assert asked == {
        "policies": ["full", "tiered:ram=1GB,ssd=2GB", "paged"],
        "workload": "agent",
        "metrics": ("f1", "contains"),
        "model": None,
        "adapter": None,
        "turns": 3,
        "n": 4,
        "seed": 0,
        "concurrency": 2,
        "tokens": 900,
        "share_prompts": None,
        "repeats": 1,
        "out": None,
        "command": "kvlab compare --policies full,tiered:ram=1GB,ssd=2GB --policies paged --workload agent --turns 3 "
        "--n 4 --concurrency 2 --metric f1 --metric contains --tokens 900 --json",
    }
    assert main(["compare", *arguments]) == 0
    assert capsys.readouterr().out == "a table\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert main(["--help"]) == 0
    assert main(["bench", "--help"]) == 0
    assert "gemm" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert kvlab.__version__ in capsys.readouterr().out


def test_help_does_not_wait_for_heavy_libraries() -> None:
    code = (
        "import sys; from kvlab.cli.main import main; main(['--help']);"
        "heavy = {'mlx.core', 'transformers', 'polars', 'altair', 'torch'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
