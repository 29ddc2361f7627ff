"""Makes a model of a GGUF file: in memory, or as a folder in MLX format."""

from __future__ import annotations

import importlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.errors import ModelError
from kvlab.models.gguf.config import model_config
from kvlab.models.gguf.file import GgufFile
from kvlab.models.gguf.vocabulary import build_tokenizer, end_tokens, tokenizer_config
from kvlab.models.gguf.weights import parameters
from kvlab.models.kv_dtype import DTYPES

WEIGHTS_FILE = "model.safetensors"


def natural_dtype(file: GgufFile) -> str:
    """Return the dtype of most weights in the file; bfloat16 where most are quantized."""
    counts: dict[str, int] = {}
    for tensor in file.tensors.values():
        kind = {"F32": "float32", "F16": "float16"}.get(tensor.kind.name, "bfloat16")
        counts[kind] = counts.get(kind, 0) + math.prod(tensor.shape)
    return max(counts, key=counts.__getitem__, default="float32")


def expanded_bytes(file: GgufFile, dtype: str) -> int:
    """Return the bytes that the weights take in memory."""
    return sum(math.prod(tensor.shape) for tensor in file.tensors.values()) * DTYPES[dtype].size


def build(file: GgufFile, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """Return the model, its weights expanded to ``dtype``, and its tokenizer, as ``mlx_lm.load`` does.

    ``dtype`` is the file's own where it is None. Raises ModelError for a file that is no model of a known family.
    """
    from mlx_lm.utils import load_tokenizer

    config = _config(file)
    with tempfile.TemporaryDirectory(prefix="kvlab-gguf-") as folder:
        _write_tokenizer(file, Path(folder))
        tokenizer = load_tokenizer(Path(folder), eos_token_ids=config["eos_token_id"])
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    network = module.Model(module.ModelArgs.from_dict(config))
    weights = dict(parameters(file, config, DTYPES[dtype or natural_dtype(file)]))
    try:
        network.load_weights(list(network.sanitize(weights).items()))
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{file.path} does not hold the weights that its header tells of: {said}") from error
    network.eval()
    return network, tokenizer


def write_folder(file: GgufFile, folder: Path, dtype: str) -> None:
    """Write config, tokenizer and weights in ``dtype`` to ``folder``. Raises ModelError, or OSError for a full disk."""
    config = _config(file)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}, indent=1))
    _write_tokenizer(file, folder)
    weights = dict(parameters(file, config, DTYPES[dtype]))
    try:
        mx.save_safetensors(str(folder / WEIGHTS_FILE), weights, {"format": "mlx"})
    except RuntimeError as error:  # MLX's word for what the system refused
        raise OSError(str(error)) from error


def _config(file: GgufFile) -> dict[str, Any]:
    return model_config(file) | {"eos_token_id": end_tokens(file)}


def _write_tokenizer(file: GgufFile, folder: Path) -> None:
    build_tokenizer(file).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(file), ensure_ascii=False))
