"""Loading: a folder or a GGUF file is read, then its weights are made what this device computes with."""

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
from kvlab.models.gguf import GgufFile, build, expanded_bytes, natural_dtype
from kvlab.models.gguf.config import check_family
from kvlab.models.kv_dtype import DTYPES, kv_dtype
from kvlab.models.loaded import LoadedModel, first_line
from kvlab.models.pairs import wrap_pair
from kvlab.models.source import ModelSource
from kvlab.models.tensor_parallel import split_over_ranks

SWITCH = "KVLAB_DEQUANTIZE"


def load(
    model: str | Path | ModelSource | LoadedModel | tuple[Any, ...] | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: str | None = None,
    dequantize: bool | None = None,
    tensor_parallel: bool = False,
) -> LoadedModel:
    """Load a model: a name that ``kvlab models`` lists, a folder, a Hugging Face id, or a GGUF file.

    None is the bundled model. What ``mlx_lm.load`` returns is taken as it is, on the thread that loaded it; a loaded
    model is returned.

    Args:
        adapter: the folder of an adapter that ``mlx_lm.lora`` wrote for this model: LoRA, DoRA or whole weights.
        dtype: float32, float16 or bfloat16: casts the weights. By default they stay as they are, except that half
            precision becomes float32 on the CPU, where half-precision products never reach BLAS. A GGUF file's
            quantized weights are expanded, by default to float32 on the CPU and to bfloat16 elsewhere.
        dequantize: expand quantized weights (True), or leave them as they are (False). By default they are expanded
            where they would be computed with in float32 on the CPU, on which products with quantized weights are slow,
            and where memory allows; never on a GPU. ``KVLAB_DEQUANTIZE=0`` (or 1) replaces that default.
        tensor_parallel: each of the ranks that ``mlx.launch`` started computes a part of every layer; one rank alone
            computes all.

    Raises:
        ModelError: it cannot be found or loaded.
    """
    if isinstance(model, LoadedModel | tuple):
        if adapter is not None or dtype is not None or dequantize is not None or tensor_parallel:
            raise ModelError(
                "this model is loaded already; give adapter, dtype, dequantize and tensor_parallel with a name or a "
                "folder"
            )
        return model if isinstance(model, LoadedModel) else wrap_pair(model)
    source = ModelSource.of(model, adapter)
    dtype = dtype or source.dtype
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    name, path = resolve(source.model)
    tuned = None if source.adapter is None else adapter_folder(source.adapter)
    wanted = dtype or _default_dtype()
    network, tokenizer, path = _read(name, path, tuned, wanted)
    planned = plan(network, wanted or "float32")
    expand = planned is not None and _decide(planned, wanted, dequantize)
    try:
        if wanted is not None:
            network.set_dtype(DTYPES[wanted])
        if expand:
            dequantize_weights(network, wanted)
        if tensor_parallel:
            split_over_ranks(network, name)
        evaluate_arrays(network)
    except (RuntimeError, ValueError) as error:  # weights are read only now: a file may be cut
        raise _cannot_load(name, path, error) from error
    shown = f"{name}+{tuned.name}" if tuned else name
    return LoadedModel(network, tokenizer, shown, path, kv_dtype(network), len(network.layers), expand, tuned)


@dataclass(frozen=True)
class WeightsReport:
    """What :func:`load` would make of a model's weights by default; nothing was read to know it.

    Attributes:
        path: the folder of the model, or its GGUF file.
        plan: what expanding them takes; None where none are quantized.
        dequantizes: whether they would be expanded.
    """

    path: Path
    plan: DequantizationPlan | None
    dequantizes: bool

    def __str__(self) -> str:
        if self.plan is None:
            return "no: no weight is quantized"
        if self.path.is_file():
            return f"yes, as all of GGUF: {self.plan}"
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
    dtype = source.dtype or _default_dtype()
    name, path = resolve(source.model)
    if path is not None and path.is_file():
        file = GgufFile.open(path)
        check_family(file)
        return WeightsReport(path, _gguf_plan(file, dtype or natural_dtype(file)), True)
    network, _, path = _read(name, path, adapter_folder(source.adapter) if source.adapter else None, dtype)
    planned = plan(network, "float32")
    return WeightsReport(path, planned, planned is not None and _decide(planned, dtype, None, warn=False))


def weight_bytes(model: str | Path | ModelSource | None = None) -> int:
    """Return the bytes of a model's weights, without reading them; 0 for the bundled model and for a hub id.

    Of a folder they are those of its files, of a GGUF file what it is expanded to. Raises ModelError as :func:`load`.
    """
    source = ModelSource.of(model)
    if source.model is None:
        return 0
    _, path = resolve(source.model)
    if path is None:
        return 0
    if path.is_file():
        file = GgufFile.open(path)
        return expanded_bytes(file, source.dtype or _default_dtype() or natural_dtype(file))
    return sum(file.stat().st_size for file in path.glob("model*.safetensors"))


def _default_dtype() -> str | None:
    """What weights are cast to where nothing is asked; None: nothing, they stay as they are."""
    return "float32" if device.computes_in_float32() else None


def _read(name: str, path: Path | None, adapter: Path | None, dtype: str | None) -> tuple[nn.Module, Any, Path]:
    """The network with its adapter, its tokenizer and its folder or file. Raises ModelError.

    The weights of a folder are not read yet; those of a GGUF file are, in ``dtype`` (None: the file's own).
    """
    import mlx_lm
    from mlx_lm.utils import hf_repo_to_path

    try:
        if path is not None and path.is_file():
            network, tokenizer = _build(path, dtype)
        else:
            network, tokenizer = mlx_lm.load(str(path) if path else name, lazy=True)[:2]
            path = path or hf_repo_to_path(name)
    except ModelError:
        raise
    except Exception as error:  # mlx-lm, transformers and the hub client raise nearly everything
        raise _cannot_load(name, path, error) from error
    if adapter is not None:
        apply_adapter(network, adapter)
    return network, tokenizer, path


def _build(path: Path, dtype: str | None) -> tuple[nn.Module, Any]:
    """The model and tokenizer of a GGUF file. Raises ModelError where memory does not hold its weights expanded."""
    file = GgufFile.open(path)
    check_family(file)
    wanted = dtype or natural_dtype(file)
    planned = _gguf_plan(file, wanted)
    if not planned.fits:
        smaller = "; --dtype bfloat16 takes half" if wanted == "float32" else ""
        raise ModelError(f"{path}: {planned}; give a smaller model, or one in MLX format, which stays packed{smaller}")
    return build(file, wanted)


def _gguf_plan(file: GgufFile, dtype: str) -> DequantizationPlan:
    return DequantizationPlan(expanded_bytes(file, dtype), device.available_bytes())


def _cannot_load(name: str, path: Path | None, error: Exception) -> ModelError:
    what = f"cannot load the model in {path}" if path else f"cannot load {name} from the Hugging Face hub"
    hint = "" if path else "; give a folder that holds it, or check the name and the network"
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
