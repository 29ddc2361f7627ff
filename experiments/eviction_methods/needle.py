"""Needles under methods that need a file, a tokenizer or a threshold of their own: SmolLM2-135M, docs/quality.md.

    python experiments/eviction_methods/needle.py [--model NAME] [--sample] [--json]

The prompts are the first ten of methods.toml. Each is computed once; rows are evicted once, at its end or, where the
question is unknown, at the end of the text before it, and nothing is evicted while the answer is decoded. methods.toml
evicts then, too: `keydiff` and `random` are here and there. The bundled model, which knows no such needles, is asked
for a fact of a document, under every method. `--sample` takes the first prompt only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from command import Measured, Row, arguments, run
from evicted_once import PromptPass, decoded, evicted, first_part, kept_bytes, prompt_pass
from methods import keydiff_thresholds, of_model
from tqdm import tqdm

from kvlab.caches.later_attention import continuation_attention, repeat_attention
from kvlab.experiments.conversations import Turn
from kvlab.experiments.prompts import Prompts
from kvlab.models import BUNDLED, LoadedModel
from kvlab.policies import Policy
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.provenance import provenance
from kvlab.results import row
from kvlab.workloads import WorkloadRequest, load_workload

OF_THRESHOLDS = 3
"""Prompts whose rows decide the thresholds of ``dms``."""
BUDGETS = (0.25, 0.5)


@dataclass(frozen=True)
class Task:
    """What is asked of a model.

    Attributes:
        known, unknown: the same workload, with the question known and unknown when rows are evicted.
        prompts: how many, of about ``tokens`` tokens each.
        methods: those that are measured beside ``oracle`` and ``kvzip``; empty: all.
    """

    known: str
    unknown: str
    prompts: int
    tokens: int
    methods: tuple[str, ...] = ()


OF_OWN_SCORES = ("sepllm", "triattention", "dms", "keydiff", "random")
NEEDLE = Task("needle:single", "needle:single,question=none", 10, 1000, OF_OWN_SCORES)
OF_BUNDLED = Task("retrieval", "retrieval:question=none", 24, 700)


def of_prompt(
    loaded: LoadedModel,
    task: Task,
    request: WorkloadRequest,
    turn: Turn,
    common: Mapping[str, tuple[str, float]],
    folder: Path,
) -> Iterator[Row]:
    """Yield the rows of one prompt, with the question known and unknown, under ``full`` and all methods.

    Args:
        common: names and budgets of the methods that any prompt may have, by their specs.
        folder: where the scores of this prompt lie.
    """
    whole = prompt_pass(loaded, turn.prompt)
    own = decoded(loaded, [evicted(loaded, whole, "knorm:budget=1.0")], (), turn.max_tokens)[0]
    for workload, count in ((task.known, len(turn.prompt)), (task.unknown, turn.compress_after or len(turn.prompt))):
        prompt = first_part(whole, count)
        question = turn.prompt[count:]
        specs = {**common, **_with_scores(loaded, prompt, (*question, *own), folder)}
        made = [evicted(loaded, prompt, spec) for spec in specs]
        names = [("full", None), *specs.values()]
        sizes = [kept_bytes(evicted(loaded, prompt, "knorm:budget=1.0")[0]), *(kept_bytes(one) for one, _ in made)]
        answers = [own, *decoded(loaded, made, question, turn.max_tokens)]
        for (name, budget), size, answer in zip(names, sizes, answers, strict=True):
            where = {"turn": 1, "conversation": request.conversation, "kind": "retrieve", "n": 1, "seed": 0}
            yield row(name, workload, "kv_bytes_live", size, budget=budget, **where)
            for metric, value in request.grade(loaded.decode(answer)).items():
                yield row(name, workload, metric, value, budget=budget, **where)


def _with_scores(
    loaded: LoadedModel, prompt: PromptPass, later: tuple[int, ...], folder: Path
) -> dict[str, tuple[str, float]]:
    """Return the methods whose scores are those of this prompt; ``oracle`` has read the tokens behind it."""
    found = {
        "oracle": continuation_attention(loaded.model, prompt.tokens, later),
        "kvzip": repeat_attention(loaded.model, loaded.tokenizer, prompt.tokens),
    }
    specs = {}
    for method, scores in found.items():
        path = folder / f"{method}.npz"
        save_scores(path, scores.tokens, scores.layers)
        for budget in BUDGETS:
            specs[f"{method}:budget={budget},scores={path}"] = (str(Policy.parse(f"{method}:budget={budget}")), budget)
    return specs


def measured(loaded: LoadedModel, task: Task, count: int, folder: Path) -> list[Row]:
    """Measure the first ``count`` prompts."""
    requests = load_workload(task.unknown, n=task.prompts, seed=0, tokens=task.tokens).requests()
    prompts = Prompts(loaded, requests)
    turns = [prompts.turn(request) for request in requests]
    common: dict[str, tuple[str, float]] = {}
    of_thresholds = [turn.prompt for turn in turns[:OF_THRESHOLDS]]
    for budget, threshold in keydiff_thresholds(loaded, of_thresholds, BUDGETS).items():
        for name, spec in of_model(loaded, folder, budget, threshold).items():
            if not task.methods or Policy.parse(name).retention.name in task.methods:
                common[spec] = (str(Policy.parse(name)), budget)
    rows: list[Row] = []
    for request, turn in tqdm(list(zip(requests, turns, strict=True))[:count], unit="prompt"):
        rows += of_prompt(loaded, task, request, turn, common, folder)
        mx.clear_cache()
    return rows


def main() -> None:
    asked = arguments(__doc__).parse_args()
    task = OF_BUNDLED if asked.model in (BUNDLED, "bundled") else NEEDLE

    def of_prompts(loaded: LoadedModel, folder: Path) -> Measured:
        rows = measured(loaded, task, 1 if asked.sample else task.prompts, folder)
        facts = provenance(loaded, seed=0, workload=task.known, concurrency=1)
        return [{**one, "model": loaded.name} for one in rows], facts

    run("methods_needle", asked, of_prompts)


if __name__ == "__main__":
    main()
