"""Flip bits of KV at rest while a server is stopped, and see what it answers afterwards.

``python experiments/real_servers/flipped_bits.py [SETUP…]`` asks for a reply, stops the server, inverts signs in every
file of its store (a file's head, with names and shapes, stays as it is), starts it again and asks the same. A server
that checks what it reads computes the prompt anew and gives the same reply.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import setups
from process import ServerProcess
from session import ANSWER_S, Language
from setups import SETUPS, Setup
from word_chain import word_chain

STORING = ("vmlx", "kvlab-tiered")
"""Setups that keep KV in files across a restart."""

PROMPT_WORDS, REPLY_TOKENS = 300, 24
LEAST_BYTES = 4096
"""Smaller files hold no KV."""

VALUE_BYTES, SIGN = 4, 0x80
"""The sign of each float32, and of every other float of 16 bits: all values stay finite and of their size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setups", nargs="*", default=STORING)
    parser.add_argument("--environments", type=Path, help="folder of the servers; else KVLAB_HOME/real_servers")
    options = parser.parse_args()
    found = []
    for name in options.setups:
        if reason := setups.why_absent(SETUPS[name], options.environments):
            print(f"skipped {name}: {reason}", file=sys.stderr)
        else:
            found.append(serve_flipped(SETUPS[name], options.environments))
    json.dump(found, sys.stdout, indent=1)


def serve_flipped(setup: Setup, environments: Path | None) -> dict[str, Any]:
    """Return what a server answers before, after a restart, and after a restart on flipped bits."""
    model = word_chain(environments, attends=True)
    prompt = Language(model).take(PROMPT_WORDS, "flipped bits")
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-flipped-") as work,
        ServerProcess(setup, model, Path(work), environments) as server,
    ):
        cold = _ask(server, prompt)
        server.restart()
        restarted = _ask(server, prompt)
        server.stop()
        files = [flip(file) for file in sorted(server.home.rglob("*")) if holds_kv(file)]
        server.start()
        flipped = _ask(server, prompt)
    return {
        "setup": setup.name,
        "versions": setups.versions(setup, environments),
        "files_flipped": len(files),
        "cached_after_restart": restarted[1],
        "same_text_after_restart": restarted[0] == cold[0],
        "cached_after_flip": flipped[1],
        "same_text_after_flip": flipped[0] == cold[0],
    }


def flip(file: Path) -> Path:
    """Invert the signs of the floats in a file; in one that is no safetensors file, those of its second half."""
    content = bytearray(file.read_bytes())
    for start, end in _floats(content) if file.suffix == ".safetensors" else [(len(content) // 8 * 4, len(content))]:
        for at in range(start + VALUE_BYTES - 1, end, VALUE_BYTES):
            content[at] ^= SIGN
    file.write_bytes(content)
    return file


def _floats(content: bytes) -> list[tuple[int, int]]:
    """Return where the arrays of floats lie in a safetensors file."""
    head = 8 + int.from_bytes(content[:8], "little")
    arrays = json.loads(content[8:head])
    spans = [entry["data_offsets"] for entry in arrays.values() if entry.get("dtype") in ("F32", "F16", "BF16")]
    return [(head + start, head + end) for start, end in spans]


def holds_kv(file: Path) -> bool:
    """Return whether a file is a block of KV: not an index, a log, a lock or a library."""
    other = any(word in file.name for word in (".db", ".sqlite", "index", ".log", ".lock", ".json", ".so"))
    return file.is_file() and not file.is_symlink() and not other and file.stat().st_size >= LEAST_BYTES


def _ask(server: ServerProcess, prompt: str) -> tuple[str, int | None]:
    """Return the reply's text, and the cached tokens that the server reports."""
    model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": REPLY_TOKENS, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=ANSWER_S).raise_for_status().json()
    return answer["choices"][0]["text"], (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")


if __name__ == "__main__":
    main()
