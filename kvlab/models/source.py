"""``ModelSource``: a model that is not loaded yet, with an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvlab.errors import ModelError
from kvlab.models.loaded import LoadedModel


@dataclass(frozen=True)
class ModelSource:
    """A model and an adapter to load with it. :func:`kvlab.models.load` takes it wherever it takes a model.

    Args:
        model: None (the bundled one), a folder or a hub id.
        adapter: the folder of an adapter; None for none.
    """

    model: str | Path | None
    adapter: str | Path | None = None

    @staticmethod
    def of(model: str | Path | ModelSource | None, adapter: str | Path | None = None) -> ModelSource:
        """Return a source of ``model``, which may be one already; ``adapter`` replaces its own."""
        source = model if isinstance(model, ModelSource) else ModelSource(model)
        return ModelSource(source.model, adapter) if adapter is not None else source


ModelLike = str | Path | ModelSource | LoadedModel | None
"""A model, loaded or not; None is the bundled one."""


def with_adapter(model: ModelLike, adapter: str | Path | None) -> ModelLike:
    """Return ``model`` with ``adapter``, if there is one. Raises ModelError for a model that is loaded already."""
    if not adapter:
        return model
    if isinstance(model, LoadedModel):
        raise ModelError(f"{model.name} is loaded already; write kvlab.load(..., adapter={str(adapter)!r}) for it")
    return ModelSource.of(model, adapter)
