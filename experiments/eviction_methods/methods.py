"""Name all eviction methods, and make the files and numbers that some of them need for a model or a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from command import Row

from kvlab.caches import make_caches
from kvlab.caches.later_attention import continuation_attention, repeat_attention
from kvlab.caches.query_centres import query_centres
from kvlab.caches.serialize import own_layers
from kvlab.decoder.shared_prompts import SharedPrompts
from kvlab.decoder.teacher_forcing import ForcedAnswer
from kvlab.experiments.teacher_forced import TeacherForcedRunner
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.policies.scorers.base import ScoreContext
from kvlab.policies.scorers.keydiff import KeyDiff
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.policies.scorers.sepllm import SepLLM
from kvlab.policies.scorers.triattention import save_centres
from kvlab.workloads import Workload

PLAIN = (
    "keydiff", "adakv(keydiff)", "local(keydiff)", "knorm", "local(knorm)", "tova", "snapkv", "adakv(snapkv)",
    "criticalkv(snapkv)", "pyramidkv:window=8", "h2o", "expected", "lagkv", "cur", "compactor", "random",
)  # fmt: skip
"""Methods that need nothing but a budget, as experiments/methods.toml has them."""
OF_PROMPT = ("oracle", "kvzip")
"""Methods whose scores are computed for one prompt, before it is answered."""
RECENT = 32
"""Latest tokens that dms keeps: prompts of tools are short, and a threshold decides about what is left."""
CALIBRATION = Path(__file__).parent / "calibration"


def with_budget(method: str, budget: float) -> str:
    return f"{method}{',' if ':' in method else ':'}budget={budget}"


def of_model(loaded: LoadedModel, folder: Path, budget: float, threshold: float) -> dict[str, str]:
    """Return the specs of all methods that run on any prompt, by the name that their rows have.

    ``triattention`` is calibrated on a text that is not measured. ``dms`` has the ``threshold`` that keeps ``budget``
    of the rows of all prompts.
    """
    centres = folder / "centres.npz"
    if not centres.exists():
        texts = [loaded.encode(path.read_text(encoding="utf-8")) for path in sorted(CALIBRATION.glob("*.md"))]
        save_centres(centres, query_centres(loaded.model, texts))
    dms = f"dms(keydiff):threshold={threshold:.4f},recent={RECENT}"
    return {
        **{spec: spec for spec in (with_budget(method, budget) for method in PLAIN)},
        f"sepllm:budget={budget}": str(SepLLM.for_tokenizer(loaded.tokenizer, budget=budget)),
        f"triattention:budget={budget}": f"triattention:budget={budget},calibration={centres}",
        dms: dms,
    }


def keydiff_thresholds(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], budgets: Sequence[float]
) -> dict[float, float]:
    """Return for each budget the score of keydiff above which this share of all rows is, layers and heads together.

    The latest ``RECENT`` rows of each prompt stay in any case, and count.
    """
    scores, wanted = [], dict.fromkeys(budgets, 0.0)
    for prompt in prompts:
        caches = make_caches(loaded.model, "knorm:budget=1.0")  # rows as they are, in caches that can be read
        mx.eval(loaded.model(mx.array([list(prompt)]), cache=caches))
        for layer, cache in enumerate(own_layers(caches)):
            keys, values = cache.rows.decode()
            at = mx.broadcast_to(mx.arange(keys.shape[2]), keys.shape[:3])
            place = ScoreContext(keys, values, at, None, 1.0, layer, len(caches), keys.shape[2])
            scores.append(np.array(KeyDiff().score(place))[..., :-RECENT].ravel())
            for budget in budgets:
                wanted[budget] += keys.shape[1] * max(0.0, budget * len(prompt) - RECENT)
    ranked = np.sort(np.concatenate(scores))[::-1]
    return {budget: float(ranked[min(len(ranked) - 1, round(count))]) for budget, count in wanted.items()}


def scores_of(method: str, loaded: LoadedModel, forced: ForcedAnswer, path: Path) -> Path:
    """Write the scores of one prompt's rows: for ``oracle`` what its answer reads, for ``kvzip`` what repeating reads.

    ``kvzip`` repeats the whole prompt, the words of a chat template among it.
    """
    if method == "oracle":
        found = continuation_attention(loaded.model, forced.prompt, forced.answer)
    else:
        found = repeat_attention(loaded.model, loaded.tokenizer, forced.prompt)
    save_scores(path, found.tokens, found.layers)
    return path


def measured(
    loaded: LoadedModel,
    workload: Workload,
    alone: Callable[[int], Workload],
    budgets: Sequence[float],
    folder: Path,
    shared: SharedPrompts | None,
    at_once: int,
) -> tuple[list[Row], Mapping[str, Any]]:
    """Lead the answers of a workload through ``full`` and every method; return tidy rows, and the provenance.

    Args:
        alone: returns the workload of one item of ``workload``, by its number.
        budgets: shares of the prompt's rows that stay.
        folder: where files of scores lie.
        at_once: answers that are led side by side.
    """
    runner = TeacherForcedRunner(workload, loaded, concurrency=at_once, shared=shared, folder=folder)
    prompts = [item.forced.prompt for item in runner.items]
    names: dict[str, tuple[str, float | None]] = {"full": ("full", None)}
    for budget, threshold in keydiff_thresholds(loaded, prompts, budgets).items():
        found = of_model(loaded, folder, budget, threshold)
        names |= {str(Policy.parse(spec)): (str(Policy.parse(name)), budget) for name, spec in found.items()}
    results = runner.run([Policy.parse(spec) for spec in names])
    rows = [_named(row, workload.name, *names[row["policy"]]) for row in results.rows]
    for index, item in enumerate(runner.items):
        specs: dict[str, tuple[str, float | None]] = {}
        for method in OF_PROMPT:
            path = scores_of(method, loaded, item.forced, folder / f"{method}-{index}.npz")
            for budget in budgets:
                spec = str(Policy.parse(f"{method}:budget={budget},scores={path}"))
                specs[spec] = (str(Policy.parse(f"{method}:budget={budget}")), budget)
        single = TeacherForcedRunner(alone(index), loaded, concurrency=1, shared=shared, folder=folder, progress=False)
        alone_results = single.run([Policy.parse(spec) for spec in specs])
        rows += [_named(row, workload.name, *specs[row["policy"]]) for row in alone_results.rows]
        for method in OF_PROMPT:
            (folder / f"{method}-{index}.npz").unlink()
    return _kept(rows), results.provenance


def _named(row: Mapping[str, Any], workload: str, policy: str, budget: float | None) -> Row:
    """Return a row under the name of its method, without its files, and with the budget that a threshold stands for."""
    return {**row, "workload": workload, "policy": policy, "budget": budget}


def _kept(rows: Iterable[Row]) -> list[Row]:
    """Leave out rows of all items together, tokens around a call, and lengths of prompts that are full's again."""
    return [
        row
        for row in rows
        if row.get("conversation") is not None
        and row.get("kind") != "syntax"
        and (row["metric"] != "prompt_tokens" or row["policy"] == "full")
        and row["metric"] != "text"
    ]
