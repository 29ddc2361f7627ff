"""The fingerprint of a model folder: what its KV is keyed by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from kvlab import paths
from kvlab.errors import ModelError


def fingerprint(path: Path, *, dequantized: bool = False) -> str:
    """Hex digest over a model folder's config and weight files. Digests of files are remembered under ``KVLAB_HOME``.

    ``dequantized`` weights give KV of other bits, and so have another one. Raises ModelError when the folder holds no
    model.
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
    if dequantized:
        digest.update(b"dequantized")
    return digest.hexdigest()[:32]


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
