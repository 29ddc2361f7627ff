"""Greedy tokens of a GGUF file in kvlab and in llama.cpp's server."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvlab  # before MLX, for its BLAS

# isort: split
import gguf
import mlx.core as mx
from texts import TEXTS
from tqdm import tqdm

from kvlab.models import LoadedModel
from kvlab.models.gguf import GgufFile

START_S = 120
ANSWER_S = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="GGUF file")
    parser.add_argument("--server", required=True, help="the program llama-server")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("float32", "file"), help="one of the two comparisons")
    options = parser.parse_args()
    model = kvlab.load(options.file, dtype="float32")
    found: dict[str, Any] = {"file": options.file.name, "tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "float32.gguf"
        for name, path in {"float32": copy, "file": options.file}.items():
            if options.only in (None, name):
                if path == copy:
                    write_float32(options.file, copy)
                with server(options.server, path, options.threads) as url:
                    theirs = [
                        ask(url, model, text, options.tokens) for text in tqdm(TEXTS, desc=f"llama-server, {name}")
                    ]
                    found["tokenizer"] = tokenizer_differences(url, model)
                found[name] = [compare(model, *one) for one in zip(TEXTS, theirs, strict=True)]
                found[f"{name}_equal"] = sum(one["agreed"] == one["of"] for one in found[name])
    json.dump(found, sys.stdout, indent=1, ensure_ascii=False)


def ask(url: str, model: LoadedModel, text: str, count: int) -> list[int]:
    body = {
        "prompt": model.encode(text),
        "n_predict": count,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
        "cache_prompt": False,
        "return_tokens": True,
        "logit_bias": [[token, False] for token in sorted(model.eos)],
    }
    return post(f"{url}/completion", body)["tokens"]


def compare(model: LoadedModel, text: str, theirs: list[int]) -> dict[str, Any]:
    """How many of their tokens kvlab would choose as well, and how near its two best lay where it would not.

    One pass over text and continuation tells: as long as the best token is theirs, kvlab goes on with the same text.
    """
    ids = model.encode(text)
    logits = model.model(mx.array([[*ids, *theirs[:-1]]]))[0, len(ids) - 1 :]
    logits[:, mx.array(sorted(model.eos))] = -mx.inf
    ours: list[int] = mx.argmax(logits, axis=-1).tolist()
    agreed = next((at for at in range(len(theirs)) if ours[at] != theirs[at]), len(theirs))
    row: dict[str, Any] = {"text": text, "agreed": agreed, "of": len(theirs)}
    best_two = mx.sort(logits, axis=-1)[:, -2:]
    row["least_margin"] = (best_two[:agreed, 1] - best_two[:agreed, 0]).min().item() if agreed else 0.0
    if agreed < len(theirs):
        row |= {
            "ours": model.decode([ours[agreed]]),
            "theirs": model.decode([theirs[agreed]]),
            "logits_apart": (logits[agreed, ours[agreed]] - logits[agreed, theirs[agreed]]).item(),
        }
    return row


def tokenizer_differences(url: str, model: LoadedModel) -> list[str]:
    """Return the texts that the two cut into other tokens."""
    pages = [page.read_text() for page in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))]
    hard = [
        "a  b   c\n\n\n\nd\t\te",
        "12345 1,234.5 ½ ²",
        "naïve 東京 Привет 🙂👩‍👩‍👧",
        " 's 'LL don't I'M",
        "x\r\ny\u00a0z",
    ]
    different = []
    for text in [*TEXTS, *hard, *pages]:
        theirs = post(f"{url}/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        if theirs != model.encode(text):
            different.append(text[:60])
    return different


def write_float32(source: Path, target: Path) -> None:
    """Copy a GGUF file, its weights expanded to float32."""
    file, fields = GgufFile.open(source), gguf.GGUFReader(source).fields
    writer = gguf.GGUFWriter(target, file.architecture)
    for key, value in file.metadata.items():
        if key not in ("general.architecture", "general.file_type"):
            kinds = fields[key].types
            writer.add_key_value(key, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name in tqdm(file.tensors, desc="float32 copy"):
        writer.add_tensor(name, file.read(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def server(program: str, path: Path, threads: int) -> Iterator[str]:
    """Run llama-server on the CPU, its KV in float32; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", str(path), "--port", str(port), "--host", "127.0.0.1", "-c", "2048", "-np", "1"]
    command += ["-t", str(threads), "-ngl", "0", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-webui"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(START_S):
            time.sleep(1)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                if child.poll() is not None:
                    raise SystemExit(f"{program} ended with status {child.returncode}") from None
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
