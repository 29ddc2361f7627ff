"""From what ``--model`` takes to a folder."""

from __future__ import annotations

import re
from pathlib import Path

from kvlab.errors import ModelError

BUNDLED = "tiny"


def bundled_path() -> Path:
    """The bundled model's folder: in the source tree, else in the installed package. Raises ModelError when absent."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "data" / "tiny", package / "_data" / "tiny"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError("the bundled model is missing: reinstall kvlab, or train it with experiments/tiny_model")


def resolve(model: str | Path | None) -> tuple[str, Path | None]:
    """Name and folder of a model; no folder for a hub id. Raises ModelError."""
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
