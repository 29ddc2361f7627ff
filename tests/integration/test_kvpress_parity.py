"""Positions that kvlab's scorers keep, against those that kvpress keeps: the same weights, tokens and compression.

The rows are kvpress' own (``experiments/kvpress_parity``); neither it nor torch is needed. Where both differ, the rows
in question are ties: their scores are equal, or differ by no more than what the two libraries round differently.

Deviations that move nothing here: snapkv averages over a group of query heads, as kvpress does and the paper does not;
``rotating`` hides rows from the prompt on, of which the same are left at its end.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import qwen3

from kvlab.caches import make_caches
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.ragged_buffer import RaggedKVBuffer
from kvlab.caches.retention import LayerPlace, TopScores
from kvlab.models import load
from kvlab.policies import Policy, ScoreContext, Scorer

ROOT = Path(__file__).parents[2]
SMOLLM2 = Path("~/.cache/kvlab/models/smollm2-135m").expanduser()
SAVED = json.loads((ROOT / "experiments" / "rows" / "kvpress_parity.json").read_text())
PROMPTS: dict[str, list[int]] = SAVED["facts"]["prompts"]
WINDOW = SAVED["facts"]["window"]
POLICIES = {
    "snapkv": "snapkv:window={window},kernel=5,budget={budget}",
    "pyramidkv": "pyramidkv:window={window},kernel=5,beta=20,budget={budget}",
    "adakv(snapkv)": "adakv(snapkv:window={window},kernel=5):budget={budget},alpha=0.2",
    "h2o": "h2o:mode=mean,recent=0.0,budget={budget}",
    "rotating": "rotating:window={latest},sinks=4",
}
"""kvlab's policies with the presses' parameters; the others have them by default."""
NEAR = 1e-4
"""Share of the spread of scores within which two scores are a tie, computed by two libraries in float32."""
NEAR_INVERTED = 1e-3
"""The same of compactor, whose scores go through the inverse of a matrix, which kvpress takes in float32."""
RANK = 1.01 / 128
"""Neighbouring ranks of lagkv: rows of equal rank in different parts are ties, and two rows may change places."""
LEAST_EQUAL = 0.99

pytestmark = pytest.mark.filterwarnings("ignore::kvlab.errors.PolicyWarning")


def module_of(name: str) -> ModuleType:
    """Return a module of experiments/kvpress_parity, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / "kvpress_parity" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


unpack = module_of("positions").unpack


def rows_of(model: str) -> list[Any]:
    return [
        pytest.param(row, id=f"{row['policy']}-{row['ratio']}-{row['prompt'].replace(' ', '')}")
        for row in SAVED["rows"]
        if row["model"] == model
    ]


def policy_of(row: dict[str, Any]) -> Policy:
    budget = round(len(PROMPTS[row["prompt"]]) * (1 - row["ratio"]))
    text = POLICIES.get(row["policy"], row["policy"] + ":budget={budget}")
    share = 1 - row["ratio"] if row["policy"] == "pyramidkv" else budget
    return Policy.parse(text.format(budget=share, window=WINDOW, latest=budget - 4))


@dataclass(frozen=True)
class Captured(Scorer):
    """Notes what a scorer sees at the end of the prompt in each layer."""

    name: ClassVar[str] = "captured-of-test"
    window: int = WINDOW  # type: ignore[assignment]
    seen: ClassVar[list[ScoreContext]] = []

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        return prompt_tokens - 1

    def score(self, context: ScoreContext) -> mx.array:
        self.seen.append(context)
        return context.positions.astype(mx.float32)


def captured(model: Any, prompt: list[int], scorer: Captured = Captured()) -> list[ScoreContext]:  # noqa: B008
    Captured.seen.clear()
    model(mx.array([prompt]), cache=make_caches(model, Policy(scorer), prompt_tokens=len(prompt)))
    found = list(Captured.seen)
    mx.eval([[one.keys, one.values, one.queries] for one in found])
    Captured.seen.clear()
    return found


def kept_of(context: ScoreContext, scorer: Scorer) -> np.ndarray:
    """Return which rows of a layer the live cache keeps, bool ``[n_kv_heads, tokens]``."""
    length, queries = context.keys.shape[2], context.queries
    assert queries is not None
    retention = TopScores(scorer, LayerPlace(context.layer, context.n_layers, length))
    rows = RaggedKVBuffer(RawCodec())
    rows.append(context.keys, context.values)
    retention.note(rows, queries, length, context.scale)
    retention.evict(rows, length, context.scale)
    return mask(np.array(retention.positions(rows.length, length))[0], length)


def mask(positions: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros((len(positions), length), bool)
    for head, row in enumerate(positions):
        out[head, row[row >= 0]] = True
    return out


def compare(
    theirs: np.ndarray, ours: np.ndarray, scores_of_layer: Callable[[], np.ndarray | None], policy: str, where: str
) -> int:
    """Return how many rows of a layer both keep. Raise where they keep different numbers, or differ in more than ties.

    Rows, kept rows and scores are ``[n_kv_heads, tokens]``; without scores, no row may differ.
    """
    if policy.startswith("adakv"):
        assert theirs.sum() == ours.sum(), where
    else:
        np.testing.assert_array_equal(theirs.sum(axis=1), ours.sum(axis=1), err_msg=where)
    differing = np.flatnonzero((theirs != ours).any(axis=1))
    scores = scores_of_layer() if len(differing) else None
    for head in differing:
        assert scores is not None, f"{where}, head {head}"
        # AdaKV compares the scores of all heads.
        of = scores if policy.startswith("adakv") else scores[head]
        least, most = (np.ptp(some[some <= 1]) for some in (scores[head][theirs[head] != ours[head]], of))
        near = RANK if policy == "lagkv" else (NEAR_INVERTED if policy == "compactor" else NEAR) * most
        assert least <= near, f"{where}, head {head}: scores that differ by {least:.1e} of {most:.1e} are no tie"
    return int((theirs & ours).sum())


def scores_of(module: Any, context: ScoreContext) -> np.ndarray | None:
    """Return the scores of a layer's rows; None for what has none, or needs all queries."""
    if not isinstance(module, Scorer) or module.accumulates:
        return None
    assert context.queries is not None
    queries = context.queries[:, :, -module.window :] if module.window else None
    return np.array(module.score(dataclasses.replace(context, queries=queries))[0])


# -- a random Qwen3, in live sequences --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Any:
    made = module_of("tiny_qwen3")
    model = qwen3.Model(qwen3.ModelArgs.from_dict(made.CONFIG))
    model.load_weights([(name, mx.array(value)) for name, value in made.weights().items()])
    return model


@pytest.fixture(scope="module")
def tiny_contexts(tiny: Any) -> dict[str, list[ScoreContext]]:
    return {name: captured(tiny, tokens) for name, tokens in PROMPTS.items() if name.startswith("random")}


@pytest.mark.parametrize("row", rows_of("tiny-qwen3"))
def test_live_sequences_keep_what_kvpress_keeps(tiny: Any, tiny_contexts: Any, row: dict[str, Any]) -> None:
    prompt, policy = PROMPTS[row["prompt"]], policy_of(row)
    caches = make_caches(tiny, policy, prompt_tokens=len(prompt))
    tiny(mx.array([prompt]), cache=caches)
    theirs = unpack(row["kept"], len(caches), 2, len(prompt))
    same = 0
    for layer, cache in enumerate(caches):
        positions = np.array(cache.positions())[0]
        if (visible := cache.retention.visible) is not None:  # rows that wait to be freed in a group are not visible
            sinks, window = visible
            positions = positions[:, (positions[0] < sinks) | (positions[0] >= len(prompt) - window)]
        ours = np.broadcast_to(mask(positions, len(prompt)), theirs[layer].shape)
        scores = functools.partial(scores_of, policy.retention, tiny_contexts[row["prompt"]][layer])
        same += compare(theirs[layer], ours, scores, row["policy"], f"{row['policy']}, layer {layer}")
    assert same >= LEAST_EQUAL * theirs.sum()


# -- SmolLM2, from what its layers hold after one prompt --------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_contexts() -> list[ScoreContext]:
    if not SMOLLM2.exists():
        pytest.skip("SmolLM2-135M is not here: kvlab models get smollm2-135m")
    if os.environ.get("KVLAB_BACKEND") == "mlx":
        pytest.skip("SmolLM2's prompt takes long without an optimised BLAS; the random Qwen3 has these decisions")
    return captured(load(SMOLLM2, dtype="float32").model, PROMPTS["license"])


@pytest.mark.parametrize("row", [row for row in rows_of("smollm2-135m") if "rotating" not in str(row.id)])
def test_layers_of_smollm2_keep_what_kvpress_keeps(smollm2_contexts: list[ScoreContext], row: dict[str, Any]) -> None:
    scorer, length = policy_of(row).retention, len(PROMPTS[row["prompt"]])
    assert isinstance(scorer, Scorer)
    theirs = unpack(row["kept"], len(smollm2_contexts), 3, length)
    same = 0
    for layer, context in enumerate(smollm2_contexts):
        ours, scores = kept_of(context, scorer), functools.partial(scores_of, scorer, context)
        same += compare(theirs[layer], ours, scores, row["policy"], f"{row['policy']}, layer {layer}")
    assert same >= LEAST_EQUAL * theirs.sum()
