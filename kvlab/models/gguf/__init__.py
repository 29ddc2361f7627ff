"""GGUF files, as llama.cpp, Ollama and LM Studio use them: read, and made what mlx-lm computes with."""

from kvlab.models.gguf.convert import build, expanded_bytes, natural_dtype, write_folder
from kvlab.models.gguf.file import GgufFile, is_gguf

__all__ = ["GgufFile", "build", "expanded_bytes", "is_gguf", "natural_dtype", "write_folder"]
