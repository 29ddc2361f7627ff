"""Lists models: what is here, and what can be had."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvlab.backends import device
from kvlab.models.catalogue import CATALOGUE, CatalogueModel
from kvlab.models.fetching import DTYPE, is_fetched
from kvlab.models.folders import BUNDLED_NAMES, bundled_path, models_path

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
OTHER_KV = ("kv_lora_rank", "layer_types", "full_attention_interval", "ssm_state_size", "state_size", "mamba_d_state")
"""Keys of configs whose layers keep something else than keys and values of every head."""


@dataclass(frozen=True)
class ListedModel:
    """A model that ``--model`` takes by this name, now or once it is fetched.

    Attributes:
        here: it is on this machine.
        bytes: of its folder where it is here, else of what is fetched.
        context: tokens that its positions reach to; None where its config does not say.
        dtype: what it is computed in here by default.
        kv_bytes_per_token: of all layers in that dtype; layers with a sliding window stop growing at it. None where
            its layers keep something else than keys and values.
        get: the command that fetches it; empty where it is here.
    """

    name: str
    here: bool
    about: str
    bytes: int
    licence: str
    context: int | None
    dtype: str
    kv_bytes_per_token: int | None
    path: str
    get: str

    def row(self) -> dict[str, Any]:
        """Return a row of ``kvlab models --json``."""
        return asdict(self)


def list_models() -> list[ListedModel]:
    """Return the bundled model, those of the catalogue, and what lies in the hub's cache. Reads no weight."""
    bundled = _listed(BUNDLED_NAMES[1], bundled_path(), "Apache-2.0", "trained for kvlab's own tests")
    return [bundled, *map(_of_catalogue, CATALOGUE.values()), *_of_hub()]


def _of_catalogue(model: CatalogueModel) -> ListedModel:
    folder = models_path() / model.name
    if is_fetched(model.name):
        return _listed(model.name, folder, model.licence_name, model.about)
    dtype = _dtype(DTYPE)
    get = f"kvlab models get {model.name}" + (" --accept-terms" if model.terms else "")
    kv_bytes = model.kv_values * VALUE_BYTES[dtype]
    return ListedModel(
        model.name,
        False,
        model.about,
        model.download_bytes,
        model.licence_name,
        model.context,
        dtype,
        kv_bytes,
        str(folder),
        get,
    )


def _of_hub() -> Iterator[ListedModel]:
    """Models in the hub's cache whose weights are there."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir()
    except (CacheNotFound, ValueError, OSError):
        return
    for repository in sorted(found.repos, key=lambda one: one.repo_id):
        for revision in sorted(repository.revisions, key=lambda one: -one.last_modified)[:1]:
            folder = revision.snapshot_path
            if repository.repo_type == "model" and (folder / "config.json").is_file() and _has_weights(folder):
                yield _listed(repository.repo_id, folder, _licence(folder), "in the hub's cache")


def _listed(name: str, folder: Path, licence: str, about: str) -> ListedModel:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    config = {**config, **(config.get("text_config") or {})} if isinstance(config, dict) else {}
    dtype = _dtype(config.get("torch_dtype") or config.get("dtype") or "float32")
    values = _kv_values(config)
    return ListedModel(
        name,
        True,
        about,
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        licence,
        config.get("max_position_embeddings"),
        dtype,
        None if values is None else values * VALUE_BYTES[dtype],
        str(folder),
        "",
    )


def _dtype(stored: str) -> str:
    """What a model that is stored in this dtype is computed in here."""
    return "float32" if device.computes_in_float32() or stored not in VALUE_BYTES else stored


def _kv_values(config: Mapping[str, Any]) -> int | None:
    """Keys and values of one token over all layers, by the config; None for layers that keep something else."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if any(config.get(key) for key in OTHER_KV) or not isinstance(layers, int) or not isinstance(heads, int):
        return None
    width = config.get("head_dim") or config.get("hidden_size", 0) // heads
    return layers * 2 * (config.get("num_key_value_heads") or heads) * width


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _licence(folder: Path) -> str:
    """The licence by the head of the model's card; a question mark where there is none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "?"
    head = card.split("---")[1] if card.startswith("---") else ""
    found = re.search(r"^license(?:_name)?:\s*(\S+)", head, re.MULTILINE)
    return found[1] if found else "?"
