"""Real models for all servers: the weights that kvlab has, with a GGUF file of them in float32.

The file that they came from is quantized, and the prebuilt ``llama-server`` computes quantized weights with
instructions that not every CPU has.
"""

from __future__ import annotations

import json
from pathlib import Path

import environments
import gguf
from word_chain import GGUF_FILE, copied_metadata, written_whole

from kvlab.models.fetching import models_path

SMOLLM2, GEMMA3 = "smollm2-135m", "gemma-3-270m"
ARCHITECTURES = {SMOLLM2: "llama", GEMMA3: "gemma3"}
"""What a GGUF file calls the architecture of each."""


def real_weights(name: str, folder: Path | None = None) -> Path:
    """Return the folder that holds the model for MLX and as a GGUF file; it is made where it is not there yet."""
    target, source = environments.root(folder) / "models" / name, models_path() / name
    if not (target / GGUF_FILE).is_file():
        target.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
            (target / file).unlink(missing_ok=True)
            (target / file).symlink_to(source / file)
        about = json.loads((source / "about.json").read_text(encoding="utf-8"))
        _write_gguf(source / about["file"], target / GGUF_FILE, name)
    return target


def _write_gguf(source: Path, target: Path, name: str) -> None:
    """Write the weights of a GGUF file in float32, in the order of their rows there."""
    architecture = ARCHITECTURES[name]
    with written_whole(target, architecture) as writer:
        copied_metadata(source, writer, ("tokenizer.", f"{architecture}."))
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in gguf.GGUFReader(source).tensors:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
