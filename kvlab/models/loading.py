"""Loading: mlx-lm reads a folder, then its weights are made what this device computes with."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from kvlab.backends import device
from kvlab.errors import BackendWarning, ModelError
from kvlab.models.adapters import adapter_folder, apply_adapter
from kvlab.models.dequantization import DequantizationPlan, dequantize_weights, plan
from kvlab.models.evaluation import evaluate_arrays
from kvlab.models.folders import resolve
from kvlab.models.kv_dtype import DTYPES, kv_dtype
from kvlab.models.loaded import LoadedModel, first_line
from kvlab.models.source import ModelSource

SWITCH = "KVLAB_DEQUANTIZE"


def load(
    model: str | Path | ModelSource | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    dequantize: bool | None = None,
) -> LoadedModel:
    """Load the bundled model (None or ``tiny``), a folder, or a Hugging Face id.

    Args:
        adapter: the folder of an adapter that ``mlx_lm.lora`` wrote for this model: LoRA, DoRA or whole weights.
        dtype: float32, float16 or bfloat16: casts the weights. By default they stay as they are, except that half
            precision becomes float32 on the CPU, where half-precision products never reach BLAS.
        dequantize: expand quantized weights (True), or leave them as they are (False). By default they are expanded
            where they would be computed with in float32 on the CPU, on which products with quantized weights are slow,
            and where memory allows; never on a GPU. ``KVLAB_DEQUANTIZE=0`` (or 1) replaces that default.

    Raises:
        ModelError: it cannot be found or loaded.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    source = ModelSource.of(model, adapter)
    name, folder = resolve(source.model)
    tuned = None if source.adapter is None else adapter_folder(source.adapter)
    network, tokenizer, path = _read(name, folder, tuned)
    wanted = dtype or ("float32" if device.computes_in_float32() else None)
    planned = plan(network, wanted or "float32")
    expand = planned is not None and _decide(planned, wanted, dequantize)
    try:
        if wanted is not None:
            network.set_dtype(DTYPES[wanted])
        if expand:
            dequantize_weights(network, wanted)
        evaluate_arrays(network)
    except (RuntimeError, ValueError) as error:  # weights are read only now: a file may be cut
        raise _cannot_load(name, folder, error) from error
    shown = f"{name}+{tuned.name}" if tuned else name
    return LoadedModel(network, tokenizer, shown, path, kv_dtype(network), len(network.layers), expand, tuned)


@dataclass(frozen=True)
class WeightsReport:
    """What :func:`load` would make of a model's weights by default; nothing was read to know it.

    Attributes:
        plan: what expanding them takes; None where none are quantized.
        dequantizes: whether they would be expanded.
    """

    path: Path
    plan: DequantizationPlan | None
    dequantizes: bool

    def __str__(self) -> str:
        if self.plan is None:
            return "no: no weight is quantized"
        if self.dequantizes:
            return f"yes: {self.plan}; {SWITCH}=0 prevents it"
        if _switch() is False:
            return f"no: {SWITCH}=0; {self.plan}"
        if not device.is_slow_with_quantized_weights():
            return "no: this device computes with quantized weights"
        return f"no: {self.plan}; {SWITCH}=1 does it all the same"


def report_weights(model: str | Path | ModelSource | None = None) -> WeightsReport:
    """What :func:`load` would make of a model's weights. Raises ModelError as it does."""
    source = ModelSource.of(model)
    network, _, path = _read(*resolve(source.model), adapter_folder(source.adapter) if source.adapter else None)
    dtype = "float32" if device.computes_in_float32() else None
    planned = plan(network, "float32")
    return WeightsReport(path, planned, planned is not None and _decide(planned, dtype, None, warn=False))


def _read(name: str, folder: Path | None, adapter: Path | None) -> tuple[nn.Module, Any, Path]:
    """The network with its adapter, whose weights are not read yet, its tokenizer and its folder. Raises ModelError."""
    import mlx_lm
    from mlx_lm.utils import hf_repo_to_path

    try:
        network, tokenizer = mlx_lm.load(str(folder) if folder else name, lazy=True)[:2]
        path = folder or hf_repo_to_path(name)
    except Exception as error:  # mlx-lm, transformers and the hub client raise nearly everything
        raise _cannot_load(name, folder, error) from error
    if adapter is not None:
        apply_adapter(network, adapter)
    return network, tokenizer, path


def _cannot_load(name: str, folder: Path | None, error: Exception) -> ModelError:
    what = f"cannot load the model in {folder}" if folder else f"cannot load {name} from the Hugging Face hub"
    hint = "" if folder else "; give a folder that holds it, or check the name and the network"
    return ModelError(f"{what}: {first_line(error)}{hint}")


def _decide(planned: DequantizationPlan, dtype: str | None, asked: bool | None, *, warn: bool = True) -> bool:
    """Whether to dequantize: as asked, as the environment says, or where it helps and fits."""
    if asked is None:
        asked = _switch()
    if asked is not None:
        return asked
    if dtype != "float32" or not device.is_slow_with_quantized_weights():
        return False
    if not planned.fits and warn:
        warnings.warn(f"weights stay quantized, which is slow on this device: {planned}", BackendWarning, stacklevel=3)
    return planned.fits


def _switch() -> bool | None:
    """What the environment says of dequantizing. Raises ModelError when it cannot be understood."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise ModelError(f"{SWITCH}={value} is neither 0 (leave quantized weights as they are) nor 1 (expand them)")
    return None if value == "" else value == "1"
