"""KV files: save, restore and erase the KV of a conversation by name, over the routes of llama.cpp's server.

This server has no slots: in place of a slot's number stands the id of an answer, or 0 for the client's latest one.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from kvlab.errors import PolicyError
from kvlab.server.errors import ApiError
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.kv_folder import FILE_NAME, KVFolder
from kvlab.server.request_body import RequestBody
from kvlab.server.service import Service
from kvlab.store import Namespace

FORMAT = 2


class SlotRequest(RequestBody):
    """POST /slots/{slot}."""

    filename: Annotated[str, Field(pattern=f"^{FILE_NAME.pattern}$")]
    model: str | None = None


def router(service: Service) -> APIRouter:
    """Make the routes over ``service``."""
    routes = APIRouter(prefix="/slots")

    @routes.get("")
    async def saved(request: Request) -> list[dict[str, Any]]:
        """List the files of this client."""
        sizes = KVFolder(request.state.client.tenant).sizes()
        return [{"filename": name, "bytes": size} for name, size in sizes.items()]

    @routes.post("/{slot}")
    async def act(
        slot: str, action: Literal["save", "restore", "erase"], body: SlotRequest, request: Request
    ) -> dict[str, Any]:
        """Save the KV of an answer, restore a file into the store, or delete the file."""
        tenant, began = request.state.client.tenant, time.perf_counter()
        folder, file = KVFolder(tenant), body.filename
        fields: dict[str, Any] = {"id_slot": slot, "filename": body.filename}
        if action == "erase":
            folder.erase(file)
            return fields
        if action == "save":
            name, tokens = _find_answer(service, slot, tenant)
            async with service.pool.use(name) as model:
                fields |= await service.run_in_worker(save, model, tokens, tenant, folder, file)
        else:
            async with service.pool.use(body.model) as model:
                fields |= await service.run_in_worker(restore, model, tenant, folder, file)
        return fields | {"timings": {f"{action}_ms": round(1e3 * (time.perf_counter() - began), 3)}}

    return routes


def save(model: ServedModel, tokens: list[int], tenant: str, folder: KVFolder, file: str) -> dict[str, int]:
    """Write the stored KV of ``tokens`` to ``file``, whole or not at all. Raises ApiError 400, 404, 500 or 507."""
    store, space, checkpoint = _store(model, tenant)
    payloads, match = store.read(store.match(space, tokens, checkpoint=checkpoint))
    state = store.read_checkpoint(match)
    if not payloads:
        raise ApiError(404, f"no KV of this answer is in the store ({match.miss or 'nothing was stored'})")
    arrays = {f"{i}/{name}": array for i, payload in enumerate(payloads) for name, array in payload.items()}
    arrays |= {f"state/{name}": array for name, array in (state or {}).items()}
    facts = {"format": FORMAT, "space": _namespace_fields(space), "tokens": list(map(int, tokens[: match.tokens]))}
    written = io.BytesIO()
    np.savez(written, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    data = written.getvalue()
    folder.write(file, [hashlib.sha256(data).digest(), data])
    return {"n_saved": match.tokens, "n_written": len(data) + 32}


def restore(model: ServedModel, tenant: str, folder: KVFolder, file: str) -> dict[str, int]:
    """Put saved KV back into the store. Raises ApiError; a damaged or foreign file restores nothing."""
    store, space, _ = _store(model, tenant)
    data = folder.read(file)
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise ApiError(400, f"{file} is damaged: save it again")
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as saved:
        facts = json.loads(saved["facts"].tobytes())
        if facts["format"] != FORMAT or facts["space"] != _namespace_fields(space):
            raise ApiError(400, f"{file} was saved by another model or policy")
        parts: dict[str, dict[str, np.ndarray]] = {}
        for key in saved.files:
            place, _, name = key.partition("/")
            if name:
                parts.setdefault(place, {})[name] = saved[key]
    state = parts.pop("state", None)
    payloads = [parts[place] for place in sorted(parts, key=int)]
    store.put(space, facts["tokens"], 0, payloads)
    if state is not None:
        store.put_checkpoint(space, facts["tokens"], state)
    return {"n_restored": len(facts["tokens"]), "n_read": len(data)}


def _store(model: ServedModel, tenant: str) -> tuple[Any, Namespace, bool]:
    decoder = model.decoder
    try:
        return decoder.store, decoder.namespace(tenant), decoder.wants_checkpoints
    except PolicyError as error:
        raise ApiError(400, f"the policy {model.policy} keeps no KV: serve paged or tiered to save slots") from error


def _namespace_fields(space: Namespace) -> list[Any]:
    # Without the tenant: the folder stands for it, and its salt must not be in a file.
    return [space.model, space.policy, space.dtype, space.block]


def _find_answer(service: Service, slot: str, tenant: str) -> tuple[str, list[int]]:
    """Return model and tokens of an answer of this tenant. Raises ApiError 404."""
    found = service.recent.find(slot, tenant)
    if found is None:
        raise ApiError(404, f"no recent answer {slot[:64]!r}; use the id of an answer, or 0 for the latest one")
    return found
