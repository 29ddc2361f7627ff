"""The models of a server: loaded for their first request, unloaded when memory is needed, never while they answer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from kvlab.backends.mlx_threads import apart
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel, ModelSource, load, weight_bytes
from kvlab.server.errors import ApiError
from kvlab.server.generation.served_model import ServedModel


class ModelPool:
    """Models by name. Everything but ``close`` runs on one event loop.

    Args:
        sources: models by name: whatever :func:`kvlab.models.load` takes, or a loaded model (never unloaded).
        open_model: makes a ServedModel of a loaded model.
        budget: bytes of weights held at once; the least recently used idle model leaves first. None keeps all.
    """

    def __init__(
        self,
        sources: Mapping[str, str | Path | ModelSource | LoadedModel],
        open_model: Callable[[LoadedModel], ServedModel],
        budget: int | None = None,
    ) -> None:
        self.sources = dict(sources)
        self.open: OrderedDict[str, ServedModel] = OrderedDict()
        self._open_model, self._budget = open_model, budget
        self._users: dict[str, int] = {}
        self._lock = asyncio.Lock()

    def name_of(self, requested: str | None) -> str:
        """Return the name of the model that a request means; the first one by default. Raises ApiError 404."""
        if requested in self.sources:
            return str(requested)
        # Clients of Anthropic request its models by default, and a small one beside the main one.
        if not requested or requested == "default" or requested.startswith("claude"):
            return next(iter(self.sources))
        names = ", ".join(self.sources)
        raise ApiError(404, f"no model {requested!r} here; there is {names}", code="model_not_found", param="model")

    @asynccontextmanager
    async def use(self, requested: str | None) -> AsyncIterator[ServedModel]:
        """Load the model and keep it while the block runs. Raises ApiError 404, or 503 when it cannot be loaded."""
        name = self.name_of(requested)
        async with self._lock:
            model = self.open.get(name) or await self._load(name)
            self.open.move_to_end(name)
            self._users[name] = self._users.get(name, 0) + 1
        try:
            yield model
        finally:
            self._users[name] -= 1

    async def _load(self, name: str) -> ServedModel:
        source = self.sources[name]
        try:
            if not isinstance(source, LoadedModel):
                await self._unload_for(weight_bytes(source))
                source = await apart(load, source)
            model = await apart(self._open_model, source)
        except ApiError:
            raise
        except KvlabError as error:
            raise ApiError(503, f"model {name} cannot be loaded: {error}") from error
        model.name = name
        self.open[name] = model
        return model

    async def _unload_for(self, nbytes: int) -> None:
        while self._budget is not None and self.open and self.weight_bytes() + nbytes > self._budget:
            idle = [name for name in self.open if not self._users.get(name)]
            if not idle:
                raise ApiError(
                    503, "the models in memory are all answering; try again later", headers={"retry-after": "5"}
                )
            await asyncio.to_thread(self.open.pop(idle[0]).close)

    def weight_bytes(self) -> int:
        """Return the bytes of the weights in memory."""
        return sum(model.nbytes for model in self.open.values())

    def close(self) -> None:
        """Close every model. Running requests end as cancelled; their KV is stored."""
        while self.open:
            self.open.popitem()[1].close()
