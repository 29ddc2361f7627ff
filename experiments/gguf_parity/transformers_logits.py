"""Logits of a GGUF file in kvlab and in transformers, which reads it in an environment of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from texts import TEXTS

CHILD = """
import json, sys
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForCausalLM
order = json.loads(Path(sys.argv[1]).read_text())
file = Path(order["file"])
model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
for at, ids in enumerate(order["prompts"]):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().numpy()
    np.save(Path(sys.argv[1]).parent / f"{at}.npy", logits)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="GGUF file")
    parser.add_argument("--python", required=True, help="a Python that has torch, accelerate, transformers and gguf")
    options = parser.parse_args()
    import kvlab  # before MLX, for its BLAS

    model = kvlab.load(options.file, dtype="float32")
    prompts = [list(model.tokenizer.encode(text)) for text in TEXTS]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        order = Path(name) / "order.json"
        order.write_text(json.dumps({"file": str(options.file.resolve()), "prompts": prompts}))
        subprocess.run([options.python, "-c", CHILD, str(order)], check=True, stdout=sys.stderr)
        for at, (text, ids) in enumerate(zip(TEXTS, prompts, strict=True)):
            rows.append({"text": text, **distances(_logits(model, ids), np.load(order.parent / f"{at}.npy"))})
    weights = [row["positions"] for row in rows]
    total = {key: float(np.average([row[key] for row in rows], weights=weights)) for key in ("kl", "top1")}
    json.dump({"file": options.file.name, "mean": total, "rows": rows}, sys.stdout, indent=1, ensure_ascii=False)


def _logits(model: Any, ids: list[int]) -> np.ndarray:
    import mlx.core as mx

    return np.array(model.model(mx.array([ids]))[0])


def distances(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Mean KL of ours from theirs in nats, largest difference of a logit, share of equal best tokens."""
    mine, other = (_log_softmax(logits.astype(np.float64)) for logits in (ours, theirs))
    return {
        "positions": len(ours),
        "kl": float((np.exp(other) * (other - mine)).sum(-1).mean()),
        "largest": float(np.abs(ours - theirs).max()),
        "top1": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


if __name__ == "__main__":
    main()
