"""The servers that are observed, each with the flags it is started with."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import environments
from real_weights import ARCHITECTURES, GEMMA3, SMOLLM2
from word_chain import GGUF_FILE, TOKENIZER

from kvlab.backends.x86 import blas_library
from kvlab.models.fetching import is_fetched
from kvlab.version import __version__

THREADS = 2

# MLX's Linux build multiplies on one slow core unless a BLAS is loaded before it; on a Mac there is nothing to load.
BLAS_FIRST = (
    "import ctypes, runpy, sys\n"
    "path, module, *sys.argv[1:] = sys.argv[1:]\n"
    "path and ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)\n"
    "runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
)


@dataclass(frozen=True)
class Setup:
    """A server as it is started here.

    ``name`` is that of the observation; ``server`` that of the program; ``flags`` go to it besides model and port;
    ``about`` says in a few words what is special; ``model`` is a name of ``models.py``; ``long`` the tokens of a long
    prompt.
    """

    name: str
    server: str
    flags: tuple[str, ...] = ()
    about: str = "its defaults"
    model: str = "word-chain"
    long: int = 300


# What Ollama gives its llama-server for a model with a context of 4,096 tokens on a machine without a large GPU.
OLLAMA_FLAGS = ("-np", "1", "-c", "4096", "-b", "512", "-ub", "512", "--flash-attn", "auto")
OLLAMA_SHIFT = ("--context-shift", "--keep", "4")

MLX_LM = Setup("mlx-lm", "mlx-lm")
LLAMA = Setup("llama-server", "llama-server")
LLAMA_4 = Setup("llama-server-np4", "llama-server", ("-np", "4"), "four slots of their own")
LLAMA_1 = Setup("llama-server-np1", "llama-server", ("-np", "1"), "one slot, host cache")
ALONE = Setup("llama-server-np1-alone", "llama-server", ("-np", "1", "--cache-ram", "0"), "one slot, no host cache")
SMALL = Setup("llama-server-np1-small", "llama-server", ("-np", "1", "--cache-ram", "1"), "one slot, 1 MiB on host")
OLLAMA = Setup("ollama-args", "llama-server", (*OLLAMA_FLAGS, *OLLAMA_SHIFT), "the arguments that Ollama gives")
VMLX = Setup("vmlx", "vmlx")
VLLM_MLX = Setup("vllm-mlx", "vllm-mlx")

# A prompt of 300 tokens has 6.6 MiB of KV in 16 bits: two fit.
SMALL_REAL = replace(SMALL, flags=("-np", "1", "--cache-ram", "16"), about="one slot, 16 MiB on host")
ON_REAL_WEIGHTS = (MLX_LM, LLAMA, LLAMA_4, LLAMA_1, ALONE, SMALL_REAL, OLLAMA, VMLX, VLLM_MLX)

WINDOWS = "window-chain"
# Prompts longer than the cells of a window: 1,024 with one slot, 2,560 with four in one memory.
ON_WINDOWS = ((MLX_LM, 1400), (LLAMA, 3200), (LLAMA_1, 1400), (OLLAMA, 1400))
ON_REAL_WINDOWS = ON_WINDOWS[:3]

SETUPS = {
    setup.name: setup
    for setup in (
        *(MLX_LM, LLAMA, LLAMA_4, LLAMA_1, ALONE, SMALL, OLLAMA, VMLX, VLLM_MLX),
        *(replace(setup, name=f"{setup.name}-smollm2", model=SMOLLM2) for setup in ON_REAL_WEIGHTS),
        *(replace(setup, name=f"{setup.name}-windows", model=WINDOWS, long=long) for setup, long in ON_WINDOWS),
        *(replace(setup, name=f"{setup.name}-gemma3", model=GEMMA3, long=long) for setup, long in ON_REAL_WINDOWS),
        Setup("kvlab-tiered", "kvlab", ("--policy", "tiered"), "policy tiered"),
        Setup("kvlab-paged", "kvlab", ("--policy", "paged"), "policy paged"),
    )
}


def why_absent(setup: Setup, folder: Path | None = None) -> str:
    """Return why a setup cannot be observed here, or an empty string where it can."""
    needed = setup.model if setup.model in ARCHITECTURES else TOKENIZER
    if not is_fetched(needed):
        return f"the model or its tokenizer is not here: kvlab models get {needed}"
    return environments.why_absent(setup.server, folder)


def command(setup: Setup, port: int, model: Path, folder: Path | None = None) -> list[str]:
    """Return the words that start a server on this machine's loopback address; ``model`` is a folder."""
    place = ["--host", "127.0.0.1", "--port", str(port)]
    match setup.server:
        case "llama-server":
            words = [
                _llama_server(folder),
                "-m",
                str(model / GGUF_FILE),
                *place,
                "-t",
                str(THREADS),
                "-ngl",
                "0",
                "--no-webui",
            ]
        case "mlx-lm":
            words = [*_with_blas(sys.executable, "mlx_lm.server"), "--model", str(model), *place]
        case "vmlx":
            words = [
                *_with_blas(environments.python_of("vmlx", folder), "vmlx_engine.cli"),
                "serve",
                str(model),
                *place,
            ]
        case "vllm-mlx":
            words = [
                *_with_blas(environments.python_of("vllm-mlx", folder), "vllm_mlx.cli"),
                "serve",
                str(model),
                *place,
            ]
        case _:
            words = [sys.executable, "-m", "kvlab", "serve", "--model", str(model), *place]
    return [*words, *setup.flags]


def versions(setup: Setup, folder: Path | None = None) -> dict[str, str]:
    """Return the packages that a server was started from, with their versions."""
    if setup.server == "kvlab":
        return {"kvlab": __version__}
    if setup.server == "mlx-lm":
        return {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")}
    known = {name: version for name, version in environments.facts(setup.server, folder).items() if name != "installed"}
    if setup.server == "llama-server":
        said = _version_said(_llama_server(folder))
        return {**known, "llama.cpp": said}
    return known


def version_label(found: dict[str, str], setup: Setup) -> str:
    """Return the version of the program itself."""
    return found["llama.cpp"] if setup.server == "llama-server" else found[setup.server]


def _llama_server(folder: Path | None) -> str:
    (program,) = environments.root(folder).glob("llama-server/*/bin/llama-server")
    return str(program)


def _version_said(program: str) -> str:
    """Return what a program says of its version."""
    answer = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    lines = (answer.stdout + answer.stderr).splitlines()
    return next((line.partition("version:")[2].strip() for line in lines if line.startswith("version:")), "")


def _with_blas(python: str | Path, module: str) -> list[str]:
    return [str(python), "-c", BLAS_FIRST, blas_library.prepare().path, module]
