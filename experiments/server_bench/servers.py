"""The two servers that are compared, each a process on the same model folder, the same BLAS and the same device."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import mlx.core as mx
from mlx.utils import tree_flatten

from kvlab.bench.models import qwen3_config, random_qwen3
from kvlab.models import LoadedModel, bundled_path

ROOT = Path(__file__).resolve().parents[2]
# Importing kvlab first is what gives MLX the fast BLAS.
MLX_LM = "import kvlab; from mlx_lm.server import main; main()"
START_S = 120
MARKERS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>")


def write_model(folder: Path, seed: int = 0) -> Path:
    """A Qwen3 of about 10M random weights under the bundled model's tokenizer and template.

    Markers have embeddings of zero: greedy decoding never says one, so that every answer has its full length.
    """
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled_path() / name, folder / name)
    known = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in known["added_tokens"]} | known["model"]["vocab"]
    vocabulary = json.loads((bundled_path() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    weights = dict(tree_flatten(random_qwen3(seed=seed, vocabulary=vocabulary).model.parameters()))
    weights["model.embed_tokens.weight"][mx.array([ids[marker] for marker in MARKERS if marker in ids])] = 0.0
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    config = qwen3_config(vocabulary=vocabulary) | {"eos_token_id": ids["<|im_end|>"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


class Server:
    """A server process. :meth:`start` returns when it has answered a request; :meth:`stop` ends it."""

    def __init__(self, name: str, policy: str, command: list[str], model: str, environment: Mapping[str, str]) -> None:
        self.name, self.policy, self.model = name, policy, model
        self._command, self._environment = command, {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [*self._command, "--port", str(port)],
            cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + START_S
        hello = {"model": self.model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        while True:
            try:
                httpx.post(f"{self.url}/v1/chat/completions", json=hello, timeout=START_S).raise_for_status()
                return
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    raise RuntimeError(f"{self.name} did not start: {' '.join(self._command)}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        """SIGTERM, as a supervisor does; what a server keeps, it keeps now."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


def both(folder: Path, model: LoadedModel) -> list[Server]:
    """kvlab with KV at rest on disk, and mlx_lm.server with its prompt cache; both with their own defaults."""
    policy = "tiered"
    ours = [sys.executable, "-m", "kvlab", "serve", "--model", str(model.path), "--policy", policy]
    theirs = [sys.executable, "-c", MLX_LM, "--model", str(model.path), "--log-level", "ERROR"]
    return [
        Server("kvlab", policy, ours, model.name, {"KVLAB_HOME": str(folder / "home")}),
        Server("mlx-lm", "mlx-lm", theirs, str(model.path), {}),
    ]
