"""``ModelSource``: a model that is not loaded yet, with an adapter and a dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvlab.errors import ModelError
from kvlab.models.loaded import LoadedModel


@dataclass(frozen=True)
class ModelSource:
    """A model and how to load it. :func:`kvlab.models.load` takes it wherever it takes a model.

    Args:
        model: None (the bundled one), a name that ``kvlab models`` lists, a folder, a hub id or a GGUF file.
        adapter: the folder of an adapter; None for none.
        dtype: of the weights; None: as :func:`kvlab.models.load` does without.
    """

    model: str | Path | None
    adapter: str | Path | None = None
    dtype: str | None = None

    @staticmethod
    def of(model: str | Path | ModelSource | None, adapter: str | Path | None = None) -> ModelSource:
        """Return a source of ``model``, which may be one already; ``adapter`` replaces its own."""
        source = model if isinstance(model, ModelSource) else ModelSource(model)
        return replace(source, adapter=adapter) if adapter is not None else source


ModelLike = str | Path | ModelSource | LoadedModel | tuple[Any, ...] | None
"""A model, loaded or not, or what ``mlx_lm.load`` returns; None is the bundled one."""


def with_dtype(model: ModelLike, dtype: str | None) -> ModelLike:
    """Return ``model`` with weights of ``dtype``, if there is one. Raises ModelError for one that is loaded already."""
    if not dtype:
        return model
    if isinstance(model, LoadedModel | tuple):
        name = getattr(model, "name", "this model")
        raise ModelError(f"{name} is loaded already; write kvlab.load(..., dtype={dtype!r}) for it")
    return replace(ModelSource.of(model), dtype=dtype)


def with_adapter(model: ModelLike, adapter: str | Path | None) -> ModelLike:
    """Return ``model`` with ``adapter``, if there is one. Raises ModelError for a model that is loaded already."""
    if not adapter:
        return model
    if isinstance(model, LoadedModel | tuple):
        name = getattr(model, "name", "this model")
        raise ModelError(f"{name} is loaded already; write kvlab.load(..., adapter={str(adapter)!r}) for it")
    return ModelSource.of(model, adapter)
