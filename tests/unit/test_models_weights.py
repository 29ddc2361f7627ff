"""What loading makes of weights: evaluated on every thread, in one dtype, and not quantized on CPUs."""

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from kvlab import models
from kvlab.backends import device
from kvlab.errors import BackendWarning, ModelError
from kvlab.models import DequantizationPlan, evaluate_arrays, kv_dtype, load
from kvlab.models.dequantization import dense_layers, dequantize_weights
from tests.architectures import RECIPES, write_recipe
from tests.helpers import random_model_folder
from tests.quantized import quantize_folder

IDS = mx.array([[5, 6, 7, 80, 9, 200, 11, 12]])
CLOSE = 2e-5
"""Largest difference of logits in float32, as a part of the largest logit."""


class Slotted:
    __slots__ = ("__hidden", "array")

    def __init__(self, array: mx.array) -> None:
        self.array, self.__hidden = array, array + 1

    @property
    def hidden(self) -> mx.array:
        return self.__hidden


class Plain:
    def __init__(self, array: mx.array) -> None:
        self.array = array
        self.itself = self


class Nested(nn.Module):
    """Keeps lazy arrays wherever a model file might keep them."""

    def __init__(self) -> None:
        super().__init__()

        def lazy() -> mx.array:
            return mx.arange(3) * 2

        kept = lazy()
        self._private = lazy()
        self._listed = [{"a": (lazy(),)}]
        self.plain = Plain(lazy())
        self.slotted = Slotted(lazy())
        self.partial = functools.partial(max, lazy())
        self.closure = lambda: kept
        self.layers = [nn.Linear(2, 2)]
        self.layers[0]._freqs = lazy()

    def arrays(self) -> list[mx.array]:
        return [
            self._private,
            self._listed[0]["a"][0],
            self.plain.array,
            self.slotted.array,
            self.slotted.hidden,
            self.partial.args[0],
            self.closure(),
            self.layers[0]._freqs,
            self.layers[0].weight,
        ]


def test_evaluate_arrays_finds_every_array_that_a_module_keeps() -> None:
    def build() -> Nested:
        nested = Nested()
        evaluate_arrays(nested)
        return nested

    with ThreadPoolExecutor(1) as thread:
        nested = thread.submit(build).result()
    for array in nested.arrays():
        mx.eval(array + 1)  # where it was left lazy: There is no Stream(cpu, 0) in current thread


# -- dtype ------------------------------------------------------------------------------------------------------------


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have loading leave weights as they are, as it does on GPUs."""
    monkeypatch.setattr(device, "computes_in_float32", lambda: False)
    monkeypatch.setattr(device, "is_slow_with_quantized_weights", lambda: False)


def test_large_float32_head_does_not_decide_the_dtype_of_kv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_gpu(monkeypatch)
    source = random_model_folder("qwen3", tmp_path / "source", dtype="bfloat16", vocab_size=4096)
    mixed = quantize_folder(source, tmp_path / "q4", 64, 4, head=mx.float32)
    loaded = load(mixed)
    sizes: dict[Any, int] = {}
    for array in (loaded.model.lm_head.weight, loaded.model.model.layers[0].self_attn.q_proj.scales):
        sizes[array.dtype] = array.size
    assert sizes[mx.float32] > sizes[mx.bfloat16]
    assert loaded.dtype == "bfloat16"
    assert load(mixed, dtype="float32").dtype == "float32"


def test_few_float32_weights_at_the_start_decide_the_dtype_of_kv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_gpu(monkeypatch)
    folder = random_model_folder("llama", tmp_path, dtype="bfloat16")
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].astype(mx.float32)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    assert load(folder).dtype == "float32"


@pytest.mark.parametrize("name", ["mamba2", "deepseek-v3", "gemma3", "falcon-h1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_dtype_is_found_in_every_kind_of_cache(name: str, dtype: str, tmp_path: Path) -> None:
    write_recipe(RECIPES[name], tmp_path)
    assert kv_dtype(load(tmp_path, dtype=dtype).model) == dtype


# -- dequantization ---------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_in_float32", lambda: True)
    monkeypatch.setattr(device, "is_slow_with_quantized_weights", lambda: True)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of quantized models; each is made once."""

    @functools.cache
    def make(name: str, group: int, bits: int, mode: str = "affine", only: str = "") -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-{group}-{bits}-{mode}")
        write_recipe(RECIPES[name], folder / "source")
        return quantize_folder(folder / "source", folder / "quantized", group, bits, mode=mode, only=only)

    return make


def _logits(loaded: models.LoadedModel) -> np.ndarray:
    return np.array(loaded.model(IDS).astype(mx.float32))


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(
    ("name", "group", "bits", "mode", "only"),
    [
        *(("llama", group, bits, "affine", "") for group in (32, 64) for bits in (2, 3, 4, 6, 8)),
        *((name, 32, 4, "affine", "") for name in ("qwen3", "gpt-oss", "deepseek-v3", "qwen3-next", "lfm2")),
        *(("qwen3", 64, bits, "affine", "") for bits in (4, 8)),
        ("gpt-oss", 32, 4, "mxfp4", "experts"),
        ("llama", 32, 8, "mxfp8", "layers"),
        ("llama", 16, 4, "nvfp4", "layers"),
    ],
)
def test_dequantized_model_computes_what_the_quantized_one_does(
    name: str, group: int, bits: int, mode: str, only: str, quantized: Callable[..., Path]
) -> None:
    folder = quantized(name, group, bits, mode, only)
    packed, dense = load(folder, dequantize=False), load(folder)
    assert (packed.dequantized, dense.dequantized) == (False, True)
    assert any(type(module) in dense_layers() for module in packed.model.modules())
    assert not any("scales" in module for module in dense.model.modules())
    wanted = _logits(packed)
    assert np.abs(_logits(dense) - wanted).max() < CLOSE * np.abs(wanted).max()


@pytest.mark.usefixtures("on_a_cpu")
def test_dequantized_weights_have_a_fingerprint_of_their_own(quantized: Callable[..., Path]) -> None:
    folder = quantized("llama", 64, 4)
    dense, packed = load(folder), load(folder, dequantize=False)
    assert dense.fingerprint != packed.fingerprint
    assert dense.fingerprint == load(folder, dequantize=True).fingerprint
    assert packed.fingerprint == load(folder, dequantize=False).fingerprint


@pytest.mark.usefixtures("on_a_cpu")
def test_plain_weights_are_never_called_dequantized(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    loaded = load(folder, dequantize=True)
    assert not loaded.dequantized
    assert loaded.fingerprint == load(folder, dequantize=False).fingerprint
    assert models.report_weights(folder).plan is None


def test_gpu_keeps_quantized_weights(quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_gpu(monkeypatch)
    assert not load(quantized("llama", 64, 4)).dequantized


@pytest.mark.usefixtures("on_a_cpu")
def test_sixteen_bits_on_a_cpu_keep_quantized_weights(quantized: Callable[..., Path]) -> None:
    assert not load(quantized("llama", 64, 4), dtype="bfloat16").dequantized


@pytest.mark.usefixtures("on_a_cpu")
def test_environment_prevents_and_forces_dequantization(
    quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantized("llama", 64, 4)
    monkeypatch.setenv("KVLAB_DEQUANTIZE", "0")
    assert not load(folder).dequantized
    assert load(folder, dequantize=True).dequantized, "an argument outranks the environment"
    monkeypatch.setenv("KVLAB_DEQUANTIZE", "1")
    monkeypatch.setattr(device, "available_bytes", lambda: 1)
    assert load(folder).dequantized
    monkeypatch.setenv("KVLAB_DEQUANTIZE", "no")
    with pytest.raises(ModelError, match="KVLAB_DEQUANTIZE=no is neither 0"):
        load(folder)


@pytest.mark.usefixtures("on_a_cpu")
def test_weights_stay_quantized_where_memory_is_short_and_a_warning_says_so(
    quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantized("llama", 64, 4)
    planned = models.report_weights(folder).plan
    assert planned is not None
    counted = sum(layer.weight.size for layer in load(folder).model.modules() if "weight" in layer)
    norms = sum(layer.weight.size for layer in load(folder).model.modules() if isinstance(layer, nn.RMSNorm))
    assert planned.needed == 4 * (counted - norms)
    monkeypatch.setattr(device, "available_bytes", lambda: planned.needed)
    with pytest.warns(BackendWarning, match=r"stay quantized.*expanded they need .* GB, and .* GB of memory may be"):
        assert not load(folder).dequantized
    monkeypatch.setattr(device, "available_bytes", lambda: 2 * planned.needed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BackendWarning)
        assert load(folder).dequantized


def test_plan_leaves_a_margin() -> None:
    assert DequantizationPlan(needed=75, available=100).fits
    assert not DequantizationPlan(needed=76, available=100).fits


def test_available_memory_is_a_part_of_what_there_is() -> None:
    assert 0 < device.available_bytes() <= device.ram_bytes()


@pytest.mark.usefixtures("on_a_cpu")
def test_report_reads_no_weight(quantized: Callable[..., Path]) -> None:
    folder = quantized("llama", 64, 4)
    before = mx.get_active_memory()
    report = models.report_weights(folder)
    planned = report.plan
    assert planned is not None and report.dequantizes
    assert mx.get_active_memory() - before < planned.needed / 8


@pytest.mark.usefixtures("on_a_cpu")
def test_report_says_whether_weights_would_be_expanded_and_how_to_prevent_it(
    quantized: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantized("llama", 64, 4)
    text = str(models.report_weights(folder))
    assert text.startswith("yes: expanded they need 0.00 GB") and text.endswith("KVLAB_DEQUANTIZE=0 prevents it")
    monkeypatch.setenv("KVLAB_DEQUANTIZE", "0")
    assert str(models.report_weights(folder)).startswith("no: KVLAB_DEQUANTIZE=0")
    monkeypatch.delenv("KVLAB_DEQUANTIZE")
    monkeypatch.setattr(device, "available_bytes", lambda: 1)
    assert str(models.report_weights(folder)).endswith("KVLAB_DEQUANTIZE=1 does it all the same")
    _on_a_gpu(monkeypatch)
    assert str(models.report_weights(folder)) == "no: this device computes with quantized weights"
    assert str(models.report_weights()) == "no: no weight is quantized"


def test_experts_with_scales_of_their_own_are_dequantized() -> None:
    experts = SwitchLinear(32, 16, 3, bias=True)
    experts.weight = experts.weight * mx.array([1.0, 100.0, 0.01])[:, None, None]
    holder = nn.Sequential(experts.to_quantized(16, 4, "nvfp4", global_scale=True))
    dequantize_weights(holder, "float32")  # MLX multiplies with such weights on GPUs only
    error = mx.linalg.norm(holder.layers[0].weight - experts.weight, axis=(1, 2))
    assert (error < 0.15 * mx.linalg.norm(experts.weight, axis=(1, 2))).all().item()
    assert mx.array_equal(holder.layers[0].bias, experts.bias).item()


def test_layer_used_in_two_places_stays_one_layer() -> None:
    shared = nn.QuantizedLinear(64, 64)
    holder = nn.Sequential(shared, nn.Sequential(shared))
    dequantize_weights(holder, "float32")
    assert holder.layers[0] is holder.layers[1].layers[0]
    assert type(holder.layers[0]) is nn.Linear


def test_importing_models_does_not_import_mlx_lm() -> None:
    """It takes seconds, for which every command would wait."""
    code = "import sys, kvlab.models; sys.exit('mlx_lm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
