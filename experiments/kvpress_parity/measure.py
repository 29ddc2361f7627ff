"""Save the positions that kvpress keeps. Runs in an environment with torch, kvpress and transformers: see README.md."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import platform
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvpress
import numpy as np
import positions
import tiny_qwen3
import torch
import transformers

ROOT = Path(__file__).parents[2]
RATIOS = (0.25, 0.5, 0.75)
TOKENS = 648
"""A multiple of 4, so that every ratio is a whole number of rows, with five parts of 128 behind four sinks."""
WINDOW = 64
PART = 256
"""Tokens that kvzip repeats at once where it repeats the prompt in parts."""
CHUNK = 212
"""Tokens of a chunk of compactor: a third of the tokens but its 8 first and 4 last, so that none is filled up."""
SEEDS = (1, 2)
LIBRARIES = ("kvpress", "torch", "transformers", "numpy")


def presses(ratio: float) -> dict[str, Any]:
    """Return the presses of the first file at a compression ratio, by the name of kvlab's policy."""
    snapkv = {"compression_ratio": ratio, "window_size": WINDOW, "kernel_size": 5}
    return {
        "knorm": kvpress.KnormPress(ratio),
        "keydiff": kvpress.KeyDiffPress(ratio),
        "tova": kvpress.TOVAPress(ratio),
        "snapkv": kvpress.SnapKVPress(**snapkv),
        "pyramidkv": kvpress.PyramidKVPress(**snapkv, beta=20),
        "lagkv": kvpress.LagKVPress(ratio, n_sink=4, lag_size=128),
        "cur": kvpress.CURPress(ratio, num_sinks=4, local_window_size=16),
        "rotating": kvpress.StreamingLLMPress(ratio, n_sink=4),
        "adakv(snapkv)": kvpress.AdaKVPress(kvpress.SnapKVPress(**snapkv), alpha_safeguard=0.2),
        "adakv(keydiff)": kvpress.AdaKVPress(kvpress.KeyDiffPress(ratio), alpha_safeguard=0.2),
    }


def presses_of_layers(ratio: float) -> dict[str, Any]:
    """Return the presses that read the model's RoPE or output projection, by the name of kvlab's policy."""

    def expected(**parameters: Any) -> Any:
        return kvpress.ExpectedAttentionPress(ratio, n_future_positions=512, n_sink=4, **parameters)

    return {
        "expected": expected(),
        "adakv(expected)": kvpress.AdaKVPress(expected(epsilon=1e-2), alpha_safeguard=0.2),
        "criticalkv(snapkv)": kvpress.CriticalKVPress(kvpress.SnapKVPress(ratio, window_size=WINDOW, kernel_size=5)),
        "criticalkv(expected)": kvpress.CriticalKVPress(expected(use_vnorm=False)),
        "compactor": CompactorOfSketch(ratio, chunk_size=CHUNK, blending=0.35),
    }


class CompactorOfSketch(kvpress.CompactorPress):
    """Compactor with the sketch that kvlab takes: kvpress draws another at each call."""

    def score(self, module: Any, *inputs: Any, **kwargs: Any) -> torch.Tensor:
        def drawn(*shape: int, **options: Any) -> torch.Tensor:
            _, heads, width, columns = shape
            return torch.from_numpy(tiny_qwen3.sketch(module.layer_idx, heads, width, columns))[None]

        with unittest.mock.patch.object(torch, "randn", drawn):
            return super().score(module, *inputs, **kwargs)


class Watched:
    """A press of presses: each compresses the same keys, and none of them changes the cache."""

    def __init__(self, each: dict[tuple[str, float], Any]) -> None:
        self._each = each
        self.kept: dict[tuple[str, float], list[np.ndarray]] = {name: [] for name in each}

    def hook(self, module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> Any:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        for name, press in self._each.items():
            module.masked_key_indices = None
            keys, _ = press.compress(module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs)
            masked, module.masked_key_indices = module.masked_key_indices, None
            self.kept[name].append(_unmasked(masked, keys) if masked is not None else _found(keys, layer.keys))
        return output

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        for press in self._each.values():
            press.post_init_from_model(model)
        for layer in model.model.layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb
        hooks = [layer.self_attn.register_forward_hook(self.hook, with_kwargs=True) for layer in model.model.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _found(kept: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
    """Return which of ``keys`` are in ``kept``, bool ``[n_kv_heads, tokens]``; behind RoPE, all keys are different."""
    out = np.zeros(keys.shape[1:3], bool)
    for head in range(keys.shape[1]):
        places = {row.numpy().tobytes(): at for at, row in enumerate(keys[0, head])}
        assert len(places) == keys.shape[2]
        out[head, [places[row.numpy().tobytes()] for row in kept[0, head]]] = True
    return out


def _unmasked(masked: Any, keys: torch.Tensor) -> np.ndarray:
    out = np.ones(keys.shape[1:3], bool)
    _, heads, rows = masked
    out[heads.numpy(), rows.numpy()] = False
    return out


def measured(
    model: Any, name: str, prompt: str, tokens: list[int], each: dict[tuple[str, float], Any]
) -> list[dict[str, Any]]:
    watched = Watched(each)
    with torch.no_grad(), watched.on(model):
        model(torch.tensor([tokens]), past_key_values=transformers.DynamicCache())
    return _rows(name, prompt, watched.kept)


def _rows(name: str, prompt: str, kept: dict[tuple[str, float], list[np.ndarray]]) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "prompt": prompt,
            "policy": policy,
            "ratio": ratio,
            "rows": [int(layer.sum()) for layer in layers],
            "kept": positions.pack(layers),
        }
        for (policy, ratio), layers in kept.items()
    ]


class ZippedAtRatios(kvpress.KVzipPress):
    """KVzip that scores once, and notes what it keeps at each ratio, evenly by layer and not."""

    def compress_post(self, model: Any) -> None:
        scores = self.score_val
        self.kept: dict[tuple[str, float], list[np.ndarray]] = {}
        self.first, self.answer = self.prefix_length, self._suffix_ids[0].tolist()
        for ratio, self.layerwise in itertools.product(RATIOS, (False, True)):
            self.compression_ratio, self.score_val = ratio, scores.clone()
            super().compress_post(model)
            attentions = [layer.self_attn for layer in model.model.layers]
            keys = [one[..., None] for one in scores]
            name = "kvzip:even" if self.layerwise else "kvzip"
            self.kept[name, ratio] = [
                _unmasked(module.masked_key_indices, one) for module, one in zip(attentions, keys, strict=True)
            ]
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None


def zipped(model: Any, name: str, prompt: str, tokens: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows of KVzip, with the context repeated in one part and in three, and its prompt's parts."""
    rows: list[dict[str, Any]] = []
    for part in (len(tokens), PART):
        press = ZippedAtRatios(RATIOS[0], chunk_size=part)
        with torch.no_grad(), press(model):
            model(input_ids=torch.tensor([tokens]), past_key_values=transformers.DynamicCache())
        rows += _rows(name, prompt, {(f"{policy}/{part}", ratio): kept for (policy, ratio), kept in press.kept.items()})
    return rows, {"first": press.first, "answer": press.answer, "part": PART}


def qwen3(attention: str = "sdpa") -> Any:
    config = transformers.Qwen3Config(**{key: value for key, value in tiny_qwen3.CONFIG.items() if key != "model_type"})
    config._attn_implementation = attention
    model = transformers.Qwen3ForCausalLM(config).eval()
    state = {key: torch.from_numpy(value) for key, value in tiny_qwen3.weights().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2-135M-Instruct, such as kvlab's")
    parser.add_argument("--layers", action="store_true", help="presses that read RoPE or the output projection")
    args = parser.parse_args()
    torch.set_num_threads(1)
    of_ratio = presses_of_layers if args.layers else presses
    each = {(name, ratio): press for ratio in RATIOS for name, press in of_ratio(ratio).items()}
    prompts = {f"random {seed}": tiny_qwen3.prompt(seed, TOKENS) for seed in SEEDS}
    common = {
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    facts = common | {"window": WINDOW, "chunk": CHUNK, "prompts": prompts}
    rows = []
    for name, tokens in prompts.items():
        rows += measured(qwen3(), "tiny-qwen3", name, tokens, each)
        if args.layers:
            continue
        observed = {("h2o", ratio): kvpress.ObservedAttentionPress(ratio) for ratio in RATIOS}
        rows += measured(qwen3("eager"), "tiny-qwen3", name, tokens, observed)
    if args.smollm2:
        model = transformers.AutoModelForCausalLM.from_pretrained(args.smollm2, dtype=torch.float32).eval()
        text = (ROOT / "LICENSE").read_text()
        prompts["license"] = transformers.AutoTokenizer.from_pretrained(args.smollm2)(text)["input_ids"][:TOKENS]
        rows += measured(model, "smollm2-135m", "license", prompts["license"], each)
        if args.layers:
            of_zip, facts_of_zip = zipped(model, "smollm2-135m", "license", prompts["license"])
            _write("kvpress_parity_kvzip", common | facts_of_zip | {"prompts": {"license": prompts["license"]}}, of_zip)
    _write("kvpress_parity_layers" if args.layers else "kvpress_parity", facts, rows)


def _write(name: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    path = ROOT / "experiments" / "rows" / f"{name}.json"
    path.write_text(f'{{"facts": {json.dumps(facts)},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
