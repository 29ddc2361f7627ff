"""Takes what ``mlx_lm.load`` returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.nn as nn

from kvlab.errors import ModelError
from kvlab.models.kv_dtype import kv_dtype
from kvlab.models.loaded import LoadedModel


def wrap_pair(pair: tuple[Any, ...]) -> LoadedModel:
    """Make a LoadedModel of ``(model, tokenizer)``, or of these and the config. The weights stay as they are.

    Raises ModelError where the parts are other ones.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    network, tokenizer = pair[:2] if 2 <= len(pair) <= 3 else (None, None)
    if not isinstance(network, nn.Module) or not hasattr(network, "layers") or not hasattr(tokenizer, "encode"):
        kinds = ", ".join(type(part).__name__ for part in pair)
        raise ModelError(f"the model is ({kinds}); give what mlx_lm.load returns: a model and its tokenizer")
    if not isinstance(tokenizer, TokenizerWrapper):
        tokenizer = TokenizerWrapper(tokenizer)
    path = Path(getattr(tokenizer, "name_or_path", "") or type(network).__module__.rpartition(".")[2])
    return LoadedModel(network, tokenizer, _name(path), path, kv_dtype(network), len(network.layers))


def _name(path: Path) -> str:
    """The name of a model by its folder, also by one of the hub's cache: ``models--org--name/snapshots/…``."""
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return path.name
