"""Save what SmolLM2 answers under kvpress' presses. Runs in the environment of measure.py: see README.md."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvpress
import measure
import torch
import transformers

RATIOS = (0.5, 0.75)
METHODS = ("knorm", "keydiff", "tova", "snapkv", "lagkv", "cur")
Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer."""
Held = dict[tuple[str, float], Layers]
"""What is left, by method and compression ratio."""


def presses() -> dict[tuple[str, float], Any]:
    made = {(name, ratio): measure.presses(ratio)[name] for name in METHODS for ratio in RATIOS}
    for ratio in RATIOS:
        made["expected", ratio] = kvpress.ExpectedAttentionPress(ratio, n_future_positions=512, n_sink=4, epsilon=0.0)
    return made


@contextmanager
def compressed(model: Any, each: dict[tuple[str, float], Any], held: Held) -> Iterator[None]:
    """Note what each press leaves of a layer's cache; the cache itself stays whole, as in kvpress during prefill."""

    def hook(module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> Any:
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        for name, press in each.items():
            found = press.compress(module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs)
            held[name].append(found)
        return output

    for press in each.values():
        press.post_init_from_model(model)
    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
    hooks = [layer.self_attn.register_forward_hook(hook, with_kwargs=True) for layer in model.model.layers]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def answer(model: Any, layers: Layers, tokens: list[int], at: int, eos: set[int], most: int) -> list[int]:
    """Decode greedily from a compressed cache; ``tokens`` come next, the first of them at position ``at``."""
    cache = transformers.DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    found: list[int] = []
    while len(found) < most:
        places = torch.arange(at, at + len(tokens))[None]
        out = model(torch.tensor([tokens]), past_key_values=cache, position_ids=places)
        at += len(tokens)
        best = int(out.logits[0, -1].argmax())
        if best in eos:
            break
        found.append(best)
        tokens = [best]
    return found


def answers(model: Any, prompt: dict[str, Any], index: int, eos: set[int]) -> Iterator[dict[str, Any]]:
    """Answer one prompt under each press, compressed behind the question and before it.

    The last token before the answer is computed behind the compressed cache where the question is unknown; where it is
    known, the first token of the answer comes from the complete cache.
    """
    for question in ("known", "unknown"):
        count = len(prompt["tokens"]) if question == "known" else prompt["seen"]
        each = presses()
        held: Held = {name: [] for name in each}
        with compressed(model, each, held):
            out = model(torch.tensor([prompt["tokens"][:count]]), past_key_values=transformers.DynamicCache())
        first = int(out.logits[0, -1].argmax())
        for (method, ratio), layers in held.items():
            if question == "known":
                found = [first, *answer(model, layers, [first], count, eos, prompt["max_tokens"] - 1)]
            else:
                found = answer(model, layers, prompt["tokens"][count:], count, eos, prompt["max_tokens"])
            yield {"prompt": index, "question": question, "policy": method, "ratio": ratio, "answer": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", type=Path, required=True, help="folder of SmolLM2-135M-Instruct, such as kvlab's")
    parser.add_argument("--prompts", type=Path, required=True, help="what needle_prompts.py printed")
    parser.add_argument("--out", type=Path, default=measure.ROOT / "experiments" / "rows" / "kvpress_answers.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = json.loads(args.prompts.read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(args.smollm2, dtype=torch.float32).eval()
    facts = {
        "libraries": {name: importlib.metadata.version(name) for name in measure.LIBRARIES},
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "window": measure.WINDOW,
        **given,
    }
    rows: list[dict[str, Any]] = []
    for index, prompt in enumerate(given["prompts"]):
        with torch.no_grad():
            rows += answers(model, prompt, index, set(given["eos"]))
        print(f"prompt {index + 1} of {len(given['prompts'])}", flush=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        args.out.write_text(f'{{"facts": {json.dumps(facts)},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
