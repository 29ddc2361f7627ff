"""From what ``--model`` takes to a folder, or to a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path

from kvlab.errors import ModelError
from kvlab.models.catalogue import CATALOGUE
from kvlab.models.gguf.file import is_gguf
from kvlab.paths import home

BUNDLED = "tiny"
BUNDLED_NAMES = (BUNDLED, "bundled")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def bundled_path() -> Path:
    """The bundled model's folder: in the source tree, else in the installed package. Raises ModelError when absent."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "data" / "tiny", package / "_data" / "tiny"):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError("the bundled model is missing: reinstall kvlab, or train it with experiments/tiny_model")


def models_path() -> Path:
    """The folder of fetched models, each in a folder of its name. Not created here."""
    return home() / "models"


def resolve(model: str | Path | None) -> tuple[str, Path | None]:
    """Name of a model, and its folder or GGUF file; neither for a hub id. Raises ModelError."""
    if model is None or str(model) in BUNDLED_NAMES:
        return BUNDLED, bundled_path()
    if str(model) in CATALOGUE:
        return str(model), _fetched(str(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} holds no config.json; give the folder of a model in Hugging Face or MLX format")
        return path.resolve().name, path.resolve()
    if path.exists():
        if path.suffix.lower() != ".gguf" and not is_gguf(path):
            raise ModelError(f"{model} is a file; give the folder that holds the model, or a GGUF file")
        return path.resolve().name.removesuffix(".gguf"), path.resolve()
    if str(model).lower().endswith(".gguf"):
        raise ModelError(f"no file {str(model)!r}; give the path of a GGUF file that exists")
    if isinstance(model, str) and HUB_ID.fullmatch(model):
        return model, None
    known = ", ".join([BUNDLED_NAMES[1], *CATALOGUE])
    raise ModelError(
        f"no model {str(model)!r}; give a folder, a Hugging Face id such as org/name, a GGUF file, or one of {known}"
    )


def _fetched(name: str) -> Path:
    """The folder of a model of the catalogue. Raises ModelError where it was not fetched."""
    folder = models_path() / name
    if not (folder / "config.json").is_file():
        other = f"; for the folder in this place write ./{name}" if Path(name).is_dir() else ""
        raise ModelError(f"{name} is not here yet; fetch it with: kvlab models get {name}{other}")
    return folder
