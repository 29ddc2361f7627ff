"""Models: the bundled one, a folder, or a Hugging Face id; loaded by mlx-lm, with the fingerprint that keys its KV."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from kvlab import paths
from kvlab.backends import device
from kvlab.errors import ModelError

BUNDLED = "tiny"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer, and what its KV is keyed by.

    ``fingerprint`` covers the config and every weight, not the name. ``dtype`` is what it computes, and so caches, in.
    """

    model: nn.Module
    tokenizer: Any  # mlx_lm's TokenizerWrapper
    name: str
    path: Path
    fingerprint: str
    dtype: str
    n_layers: int

    @property
    def argument(self) -> str:
        """What `--model` takes to load it again: empty for the bundled one, a hub id, or a folder."""
        bundled = self.name == BUNDLED and self.path == bundled_path()
        return "" if bundled else self.name if "/" in self.name else str(self.path)

    @functools.cached_property
    def eos(self) -> frozenset[int]:
        """The token ids that end an answer."""
        return frozenset(self.tokenizer.eos_token_ids)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Tokens that the model has an embedding for; a token id beyond it would read other memory."""
        tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding | nn.QuantizedEmbedding))
        return max(table.weight.shape[0] for table in tables)

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, with no special token added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(list(ids))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        generation: bool = True,
    ) -> list[int]:
        """The token ids of an OpenAI conversation by the model's chat template.

        ``generation`` appends the opening of the assistant's answer. Raises ModelError when the model has no chat
        template, or when its template refuses the conversation.
        """
        if not self.tokenizer.has_chat_template:
            raise ModelError(f"model {self.name} has no chat template; use one that has, or pass token ids")
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    [for_template(message) for message in messages],
                    tools=list(tools) or None,
                    add_generation_prompt=generation,
                    tokenize=True,
                )
            )
        except (
            Exception
        ) as error:  # templates are programs: jinja errors, KeyErrors and TypeErrors all come from the input
            raise ModelError(f"the chat template of {self.name} refuses this conversation: {_line(error)}") from error


def load(model: str | Path | None = None, *, dtype: str | None = None) -> LoadedModel:
    """Load the bundled model (None or ``tiny``), a folder, or a Hugging Face id.

    ``dtype`` (float32, float16, bfloat16) casts the weights; by default they stay as they are, except that half
    precision becomes float32 on the CPU, where half-precision products never reach BLAS. Raises ModelError.
    """
    import mlx_lm
    from mlx_lm.utils import hf_repo_to_path

    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    name, folder = _resolve(model)
    try:
        network, tokenizer = mlx_lm.load(str(folder) if folder else name)
        path = folder or hf_repo_to_path(name)
    except Exception as error:  # mlx-lm, transformers and the hub client raise nearly everything
        what = f"cannot load the model in {folder}" if folder else f"cannot load {name} from the Hugging Face hub"
        hint = "" if folder else "; give a folder that holds it, or check the name and the network"
        raise ModelError(f"{what}: {_line(error)}{hint}") from error
    computes_in = _dtype(network)
    wanted = dtype or ("float32" if device.is_cpu() else computes_in)
    if wanted != computes_in:
        network.set_dtype(DTYPES[wanted])
        mx.eval(network.parameters())
    return LoadedModel(network, tokenizer, name, path, fingerprint(path), wanted, len(network.layers))


def bundled_path() -> Path:
    """The bundled model's folder: in the source tree, else in the installed package. Raises ModelError when absent."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "data" / "tiny", package / "_data" / "tiny"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError("the bundled model is missing: reinstall kvlab, or train it with experiments/tiny_model")


def fingerprint(path: Path) -> str:
    """Hex digest over a model folder's config and weight files. Digests of files are remembered under ``KVLAB_HOME``.

    Raises ModelError when the folder holds no model.
    """
    weights = sorted(path.glob("model*.safetensors"))
    if not weights or not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no model: config.json and model*.safetensors are needed")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # Notes of where a file came from do not change the KV.
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != "transformers_version"}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for file in weights:
        digest.update(_file_digest(file).encode())
    return digest.hexdigest()[:32]


def _resolve(model: str | Path | None) -> tuple[str, Path | None]:
    """Name and folder; no folder for a hub id. Raises ModelError."""
    if model is None or str(model) == BUNDLED:
        return BUNDLED, bundled_path()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{model} holds no config.json; give the folder of a model in Hugging Face or MLX format")
        return folder.resolve().name, folder.resolve()
    if folder.exists():
        raise ModelError(f"{model} is a file; give the folder that holds the model")
    if isinstance(model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        return model, None
    raise ModelError(f"no model {str(model)!r}; give a folder, a Hugging Face id such as org/name, or {BUNDLED!r}")


def _dtype(network: nn.Module) -> str:
    """What the model computes in. Quantized weights count by their scales; norms kept in float32 do not decide."""
    sizes: dict[str, int] = {}
    arrays: Any = tree_flatten(network.parameters())
    for _, array in arrays:
        name = str(array.dtype).removeprefix("mlx.core.")
        if name in DTYPES:
            sizes[name] = sizes.get(name, 0) + array.size
    return max(sizes, key=lambda name: sizes[name]) if sizes else "float32"


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: tool arguments as a mapping, and never a content of None."""
    made = dict(message)
    if made.get("content") is None:
        made["content"] = ""
    if made.get("tool_calls"):
        made["tool_calls"] = [_call_for_template(call) for call in made["tool_calls"]]
    elif "tool_calls" in made:
        del made["tool_calls"]
    return made


def _call_for_template(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(json.JSONDecodeError):  # a model's malformed arguments are shown to it as they were
            function["arguments"] = json.loads(arguments or "{}")
    return {**call, "function": function} if "function" in call else function


def _file_digest(file: Path) -> str:
    """SHA-256 of a file, remembered until its size, times or inode change."""
    stat = file.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]
    memo = paths.home() / "fingerprints" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["state"] == state:
            return str(known["sha256"])
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file still being written could change within the clock's grain and keep its times.
    if time.time() - max(stat.st_mtime, stat.st_ctime) > 2:
        with contextlib.suppress(OSError):
            _write_atomically(memo, json.dumps({"file": str(file), "state": state, "sha256": digest}))
    return digest


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as stream:
        stream.write(text)
    os.replace(stream.name, path)


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
