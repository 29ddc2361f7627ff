"""SmolLM2-135M-Instruct for all servers: the weights that kvlab has, with a GGUF file of them in float32.

The file that they came from is quantized, and the prebuilt ``llama-server`` computes quantized weights with
instructions that not every CPU has.
"""

from __future__ import annotations

from pathlib import Path

import environments
import gguf
from word_chain import GGUF_FILE, TOKENIZER_FILE, copied_metadata, written_whole

from kvlab.models.fetching import models_path

NAME = "smollm2-135m"


def real_weights(folder: Path | None = None) -> Path:
    """Return the folder that holds the model for MLX and as a GGUF file; it is made where it is not there yet."""
    target, source = environments.root(folder) / "models" / NAME, models_path() / NAME
    if not (target / GGUF_FILE).is_file():
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to(source / name)
        _write_gguf(source / TOKENIZER_FILE, target / GGUF_FILE)
    return target


def _write_gguf(source: Path, target: Path) -> None:
    """Write the weights of a GGUF file in float32, in the order of their rows there."""
    with written_whole(target, "llama") as writer:
        copied_metadata(source, writer, ("tokenizer.", "llama."))
        writer.add_name(NAME)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in gguf.GGUFReader(source).tensors:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
