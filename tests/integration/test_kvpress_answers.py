"""What SmolLM2 answers under kvlab's scorers, against its answers under kvpress' presses: the same prompts and rows.

The answers are kvpress' own (``experiments/kvpress_parity/answers.py``); neither it nor torch is needed. kvpress evicts
nothing while it decodes, so that nothing is evicted here either once the prompt is compressed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from kvlab.caches import make_caches
from kvlab.models import LoadedModel, load

ROOT = Path(__file__).parents[2]
SMOLLM2 = Path("~/.cache/kvlab/models/smollm2-135m").expanduser()
SAVED = json.loads((ROOT / "experiments" / "rows" / "kvpress_answers.json").read_text())
FACTS = SAVED["facts"]
WINDOW = FACTS["window"]
POLICIES = {"snapkv": f"snapkv:window={WINDOW},kernel=5", "expected": "expected:window={prompt}"}
"""kvlab's policies with the presses' parameters; the others have them by default."""
QUICK = 0
"""The prompt whose answers are compared in each run; ``answers_of`` compares any."""


def policy_of(row: dict[str, Any], prompt: int) -> str:
    """Return the policy that keeps as many rows as the press does of ``prompt`` tokens."""
    spec = POLICIES.get(row["policy"], row["policy"]).format(prompt=prompt)
    return f"{spec}{',' if ':' in spec else ':'}budget={int(prompt * (1 - row['ratio']))}"


def answer(model: LoadedModel, row: dict[str, Any]) -> list[int]:
    """Decode greedily behind the compressed prompt, as ``answers.py`` does."""
    prompt = FACTS["prompts"][row["prompt"]]
    tokens = prompt["tokens"]
    count = len(tokens) if row["question"] == "known" else prompt["seen"]
    caches = make_caches(model.model, policy_of(row, count), prompt_tokens=count)
    logits = model.model(mx.array([tokens[:count]]), cache=caches)
    for cache in caches:
        cache.retention.is_due = lambda *_: False  # nothing is evicted while decoding
    if count < len(tokens):
        logits = model.model(mx.array([tokens[count:]]), cache=caches)
    found: list[int] = []
    while len(found) < prompt["max_tokens"]:
        best = int(logits[0, -1].argmax().item())
        if best in FACTS["eos"]:
            break
        found.append(best)
        logits = model.model(mx.array([[best]]), cache=caches)
    return found


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if not SMOLLM2.is_dir():
        pytest.skip(f"SmolLM2 is not in {SMOLLM2}: kvlab models get smollm2-135m")
    return load(str(SMOLLM2))


def test_saved_answers_are_of_every_method_for_both_places_of_the_question() -> None:
    cells = {(row["policy"], row["ratio"], row["question"], row["prompt"]) for row in SAVED["rows"]}
    methods = {row["policy"] for row in SAVED["rows"]}
    assert methods >= {"knorm", "keydiff", "tova", "snapkv", "expected"}
    prompts = {row["prompt"] for row in SAVED["rows"]}
    assert len(cells) == len(SAVED["rows"]) == len(methods) * 2 * 2 * len(prompts)


@pytest.mark.parametrize("question", ["known", "unknown"])
@pytest.mark.parametrize("method", sorted({row["policy"] for row in SAVED["rows"]}))
def test_answers_are_those_of_kvpress(smollm2: LoadedModel, method: str, question: str) -> None:
    rows = [
        row
        for row in SAVED["rows"]
        if row["policy"] == method and row["question"] == question and row["prompt"] == QUICK and row["ratio"] == 0.5
    ]
    assert rows
    for row in rows:
        assert answer(smollm2, row) == row["answer"], f"{method} at {row['ratio']}, question {question}"
