"""What every eviction method flips in tool calls: SmolLM2-135M on BFCL, or the bundled model, docs/quality.md.

    python experiments/eviction_methods/tools.py --data FOLDER [--model NAME] [--sample] [--json]

FOLDER holds `bfcl/` as for tools.toml; `KVLAB_TOOL_DATA` may name it instead. The bundled model, which knows the tools
of its own service desk only, gets the calls of the `agent` workload, without data. Each prompt is computed once, rows
are evicted once at its end, and the call is led through what every method leaves. `--sample` takes two items only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from command import Measured, Row, arguments, run
from evicted_once import PromptPass, evicted, kept_bytes, led, prompt_pass
from methods import OF_PROMPT, keydiff_thresholds, of_model, scores_of
from tqdm import tqdm

from kvlab.errors import PolicyWarning
from kvlab.experiments.forced_answers import ForcedItem, forced_items
from kvlab.experiments.prompts import Prompts
from kvlab.models import BUNDLED, LoadedModel
from kvlab.policies import Policy
from kvlab.provenance import provenance
from kvlab.results import row
from kvlab.workloads import WorkloadRequest, load_workload
from kvlab.workloads.call_spans import ARGUMENT, NAME
from kvlab.workloads.tools import CALL, Tools

ITEMS, SAMPLE = 12, 2
OWN_TURNS = 8
"""Turns of each conversation of the bundled model, whose last is a call."""
BUDGETS = (0.25, 0.5)
LEFT_OUT = "local"
"""Compresses complete blocks of 128 tokens only: of prompts that are hardly two blocks long it keeps much more."""


def calls(model: str, data: Path) -> tuple[str, list[WorkloadRequest]]:
    """Return a workload's name and its requests that want a tool call."""
    if model in (BUNDLED, "bundled"):
        last = [one for one in load_workload("agent", n=ITEMS, turns=OWN_TURNS).requests() if one.turn == OWN_TURNS]
        return "agent", [one for one in last if one.kind == CALL]
    return "tools:bfcl", Tools(data / "bfcl", n=ITEMS).requests()


def of_item(
    loaded: LoadedModel, item: ForcedItem, specs: Sequence[tuple[str, str, float]], workload: str
) -> Iterator[Row]:
    """Yield the rows of one call under ``full`` and policies, each given as its spec, its name and its budget."""
    prompt = prompt_pass(loaded, item.forced.prompt)
    own = _led(loaded, prompt, "knorm:budget=1.0", item)[0]
    yield _row("full", None, item, workload, "prompt_tokens", len(prompt.tokens), item.request.kind)
    for spec, name, budget in specs:
        log_probs, size = _led(loaded, prompt, spec, item)
        yield _row(name, budget, item, workload, "kv_bytes_live", size, item.request.kind)
        kl = np.array(mx.maximum((mx.exp(own) * (own - log_probs)).sum(axis=-1), 0.0))
        flips = np.array(own.argmax(axis=-1) != log_probs.argmax(axis=-1))
        for kind in (NAME, ARGUMENT):
            if (chosen := np.array(item.kinds) == kind).any():
                yield _row(name, budget, item, workload, "kl", float(kl[chosen].mean()), kind)
                yield _row(name, budget, item, workload, "tool_flip", float(flips[chosen].mean()), kind)


def _led(loaded: LoadedModel, prompt: PromptPass, spec: str, item: ForcedItem) -> tuple[mx.array, int]:
    caches, logits = evicted(loaded, prompt, spec)
    size = kept_bytes(caches)
    log_probs = led(loaded, caches, logits, item.forced.answer)
    mx.eval(log_probs)
    return log_probs, size


def _row(
    policy: str, budget: float | None, item: ForcedItem, workload: str, metric: str, value: float, kind: str
) -> Row:
    where = {"turn": item.request.turn, "conversation": item.request.conversation, "kind": kind, "n": 1, "seed": 0}
    return row(policy, workload, metric, value, budget=budget, **where)


def measured(loaded: LoadedModel, workload: str, items: Sequence[ForcedItem], count: int, folder: Path) -> list[Row]:
    """Lead the first ``count`` calls through all methods; the thresholds of ``dms`` are those of all ``items``."""
    common = []
    for budget, threshold in keydiff_thresholds(loaded, [one.forced.prompt for one in items], BUDGETS).items():
        found = of_model(loaded, folder, budget, threshold)
        named = [(spec, str(Policy.parse(name))) for name, spec in found.items()]
        common += [(spec, name, budget) for spec, name in named if Policy.parse(name).retention.name != LEFT_OUT]
    rows: list[Row] = []
    for item in tqdm(items[:count], unit="call"):
        specs = list(common)
        for method in OF_PROMPT:
            path = scores_of(method, loaded, item.forced, folder / f"{method}.npz")
            for budget in BUDGETS:
                name = f"{method}:budget={budget}"
                specs.append((f"{name},scores={path}", str(Policy.parse(name)), budget))
        rows += of_item(loaded, item, specs, workload)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KVLAB_TOOL_DATA", ".")))
    asked = parser.parse_args()

    def of_calls(loaded: LoadedModel, folder: Path) -> Measured:
        workload, requests = calls(asked.model, asked.data)
        prompts = Prompts(loaded, requests)
        items = forced_items(requests, prompts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolicyWarning)  # windows that fill the budget of a short prompt
            rows = measured(loaded, workload, items, SAMPLE if asked.sample else len(items), folder)
        facts = provenance(loaded, seed=0, workload=workload, concurrency=1, **prompts.facts)
        return [{**one, "model": loaded.name} for one in rows], facts

    run("methods_tools", asked, of_calls)


if __name__ == "__main__":
    main()
