"""Measure the storage codec on a model: bytes of a context at rest, and KL of what follows it. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.codecs import make_codec
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.storage_codec import KVSamples, StorageCodec, fitted
from kvlab.models import load
from kvlab.policies import parse_module

ROOT = Path(__file__).parents[2]
BLOCK, CONTEXT, CONTINUATION = 64, 512, 128
CALIBRATION_PROMPTS, CALIBRATION_TOKENS = 6, 1024
CALIBRATION = ("docs/policies.md", "docs/limits.md", "docs/concepts.md", "docs/install.md", "docs/write.md")
"""Texts that the transform is measured on; those that it is tried on are of other kinds."""
TEXTS = {
    "license": "LICENSE",
    "code": "kvlab/decoder/scheduler.py",
    "notebook": "notebooks",
    "settings": "pyproject.toml",
}
RAW_BYTES = 2
"""Bytes of a number of the cache in 16 bits, which is what an eighth is of."""
Rows = list[tuple[mx.array, mx.array]]


def tokens_of(tokenizer: Any, name: str, count: int, skip: int = 0) -> list[int]:
    path = ROOT / name
    if path.is_dir():
        cells = [cell for file in sorted(path.glob("*.ipynb")) for cell in json.loads(file.read_text())["cells"]]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    else:
        text = path.read_text()
    found = tokenizer.encode(text)[skip : skip + count]
    if len(found) < count:
        raise SystemExit(f"{name} has {len(found)} tokens, and {count} are needed")
    return list(found)


class Harness:
    """Continues contexts from rows that a codec wrote and read, and compares the logits with those of exact rows."""

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        self._model = model
        self._later = mx.array([list(tokens[CONTEXT:])])
        caches = observed_caches(model, lambda *_: None)
        mx.eval(model(mx.array([list(tokens[:CONTEXT])]), cache=caches))
        self.rows: Rows = [cache.rows.decode() for cache in caches]
        self._exact = self._logits(self.rows)

    def _logits(self, rows: Rows) -> mx.array:
        caches = observed_caches(self._model, lambda *_: None)
        for cache, (keys, values) in zip(caches, rows, strict=True):
            cache.restore(RawCodec().encode(keys, values))
        logits = self._model(self._later, cache=caches)[0].astype(mx.float32)
        mx.eval(logits)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def compared(self, rows: Rows) -> dict[str, float]:
        """Return mean KL and the share of tokens with the same best token."""
        other = self._logits(rows)
        kl = (mx.exp(self._exact) * (self._exact - other)).sum(axis=-1)
        same = mx.argmax(self._exact, axis=-1) == mx.argmax(other, axis=-1)
        return {"kl": float(kl.mean().item()), "top1": float(same.mean().item())}


def stored(codec: StorageCodec, rows: Rows) -> tuple[Rows, int]:
    """Write and read the context in blocks, from 16 bits; return its rows and the bytes of all blocks."""
    parts, size = [], 0
    rows = [(k.astype(mx.float16), v.astype(mx.float16)) for k, v in rows]
    for start in range(0, CONTEXT, BLOCK):
        data = codec.encode([(k[:, :, start : start + BLOCK], v[:, :, start : start + BLOCK]) for k, v in rows], start)
        parts.append(codec.decode(data))
        size += len(data)
    joined = [
        tuple(mx.concatenate([part[layer][side] for part in parts], axis=2).astype(mx.float32) for side in (0, 1))
        for layer in range(len(rows))
    ]
    return joined, size


def quantized(spec: str, rows: Rows) -> tuple[Rows, int]:
    """Write and read the context with a codec of live caches, in 16 bits as the raw bytes are."""
    codec, out, size = make_codec(parse_module(spec)), [], 0
    for sides in rows:
        arrays = codec.encode(*(side.astype(mx.float16) for side in sides))
        size += sum(array.nbytes for array in arrays.values())
        out.append(tuple(side.astype(mx.float32) for side in codec.decode(arrays)))
    return out, size


def measured(
    harnesses: dict[str, Harness], name: str, write: Callable[[Rows], tuple[Rows, int]], **facts: Any
) -> list[dict[str, Any]]:
    found = []
    for text, harness in harnesses.items():
        rows, size = write(harness.rows)
        raw = sum(side.size for sides in harness.rows for side in sides) * RAW_BYTES
        found.append({"codec": name, "text": text, **facts, "bytes_ratio": size / raw, **harness.compared(rows)})
    means = {key: float(np.mean([row[key] for row in found])) for key in ("bytes_ratio", "kl", "top1")}
    print(name, facts, {key: round(value, 5) for key, value in means.items()}, file=sys.stderr, flush=True)
    return [*found, {"codec": name, "text": "mean", **facts, **means}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or name of a model, such as smollm2-135m's folder")
    parser.add_argument("--samples", type=Path, required=True, help="file of samples of KV; made where it is missing")
    parser.add_argument("--steps", nargs="*", default=["0.1/0.3"], help="k_step/v_step pairs")
    parser.add_argument("--codecs", nargs="*", default=[], help="codecs of live caches to stand beside")
    parser.add_argument("--out", type=Path, help="file of the rows, in JSON")
    args = parser.parse_args()
    loaded = load(args.model, dtype="float32")
    if not args.samples.exists():
        text = [token for name in CALIBRATION for token in loaded.tokenizer.encode((ROOT / name).read_text())]
        spans = range(0, CALIBRATION_PROMPTS * CALIBRATION_TOKENS, CALIBRATION_TOKENS)
        KVSamples.of(loaded.model, [text[at : at + CALIBRATION_TOKENS] for at in spans]).save(args.samples)
    samples = KVSamples.load(args.samples)
    harnesses = {
        name: Harness(loaded.model, tokens_of(loaded.tokenizer, path, CONTEXT + CONTINUATION))
        for name, path in TEXTS.items()
    }
    rows = []
    for pair in args.steps:
        k_step, v_step = map(float, pair.split("/"))
        codec = StorageCodec.of(loaded.model, fitted(samples, k_step, v_step))
        rows += measured(harnesses, "storage", lambda rows: stored(codec, rows), k_step=k_step, v_step=v_step)  # noqa: B023
    for spec in args.codecs:
        rows += measured(harnesses, spec, lambda rows: quantized(spec, rows))  # noqa: B023
    if args.out:
        lines = ",\n".join(json.dumps(row) for row in rows)
        args.out.write_text(f'{{"model": {json.dumps(Path(args.model).name)},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
