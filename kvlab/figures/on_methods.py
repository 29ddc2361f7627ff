"""The figure of all eviction methods that needs no right answer: their distance from `full` on pages of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.figures.claim import Claim, pick
from kvlab.figures.figure import Figure
from kvlab.figures.number import Number
from kvlab.figures.on_smollm2 import KNOWN, TITLES, UNKNOWN
from kvlab.figures.parts import method_and_budget, method_ranking
from kvlab.figures.saved import Saved
from kvlab.results.forced_summary import summarize_forced


def by_method(rows: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Return `measure`, `method`, `budget`, `value`, `low`, `high` of these measures, in their order.

    The budget is that of the rows: a method with a threshold has none of its own.
    """
    budgets = dict(rows.select("policy", "budget").unique().iter_rows())
    made = []
    for measure in measures:
        found = summarize_forced(rows).filter(pl.col("measure") == measure)
        for policy, value, low, high in found.select("policy", "value", "low", "high").iter_rows():
            if (method := method_and_budget(policy)) is not None:
                budget = method[1] if budgets[policy] is None else float(budgets[policy])
                made.append((measure, method[0], budget, value, low, high))
    return pl.DataFrame(made, schema=["measure", "method", "budget", "value", "low", "high"], orient="row")


def _kl(saved: Saved) -> Any:
    return charts.measures_by_method(by_method(saved.rows, ["KL"]), "KL from full by method")


FLIPS = ("name flips", "argument flips")


def _flips(saved: Saved) -> Any:
    found = by_method(saved.rows, FLIPS)
    return charts.measures_by_method(found, "Only a second pass, kvzip, keeps the names of tool calls")


def _flips_of_bundled(saved: Saved) -> Any:
    return charts.measures_by_method(by_method(saved.rows, FLIPS), "Most methods flip nothing, knorm more than random")


QUARTER = "budget=0.25"
SPECS = {
    **{
        method: (f"{method}:{QUARTER}", method)
        for method in ("oracle", "kvzip", "h2o", "snapkv", "tova", "expected", "compactor", "keydiff", "knorm", "cur")
    },
    "local-keydiff": (f"local:{QUARTER}", "local"),
    "sepllm": (f"sepllm:{QUARTER}", "sepllm"),
    "triattention": (f"triattention:{QUARTER}", "triattention"),
    "random": (f"random:{QUARTER}", "random"),
}
"""Methods whose numbers the docs name, with a quarter and with half of the rows."""


KL_BY_METHOD = Figure(
    name="kl-by-method",
    title="Every eviction method by its distance from full, SmolLM2-135M",
    experiments=("methods_kl",),
    chart=_kl,
    metrics=frozenset({"kl", "top1", "kv_bytes_live", "prompt_tokens"}),
    claims=(
        Claim(
            "With half of the rows, oracle is at most half as far from full as kvzip",
            pick("kl", policy="oracle"),
            pick("kl", policy="kvzip"),
            at_most=0.5,
            tolerance=0.3,
        ),
        Claim(
            "With a quarter, kvzip is nearer than snapkv",
            pick("kl", policy="kvzip:budget=0.25"),
            pick("kl", policy="snapkv:budget=0.25"),
            at_most=0.8,
            tolerance=0.2,
        ),
        Claim(
            "With a quarter, h2o is at most half as far as keydiff, which keeps needles best",
            pick("kl", policy="h2o:budget=0.25"),
            pick("kl", policy="keydiff:budget=0.25"),
            at_most=0.5,
            tolerance=0.3,
        ),
        Claim(
            "With half, random is at least 1.2 times as far as knorm",
            pick("kl", policy="random"),
            pick("kl", policy="knorm"),
            at_least=1.2,
            tolerance=0.2,
        ),
    ),
    shows="800 tokens of eight pages each; rows are evicted at their end, and the next 32 tokens are led through every "
    "method. To the left is nearer to `full`. [What the ranking says](../quality.md).",
    numbers={
        "pages": Number(pick("prompt_tokens", "count", policy="full")),
        **{f"{name}-quarter": Number(pick("kl", policy=quarter)) for name, (quarter, _) in SPECS.items()},
        **{f"{name}-half": Number(pick("kl", policy=half)) for name, (_, half) in SPECS.items()},
    },
)
CALLS = ("oracle", "kvzip", "h2o", "snapkv", "expected", "keydiff", "lagkv", "tova", "knorm", "cur", "random")
"""Methods whose flips the docs name, with a quarter and with half of the rows."""


def _flipped(kind: str) -> dict[str, Number]:
    """Return the share of flipped tokens of a kind, in percent, of each method that the docs name."""
    budgets = {"quarter": ":budget=0.25", "half": ""}
    return {
        f"{method}-{kind}-{name}": Number(pick("tool_flip", policy=f"{method}{budget}", kind=kind), scale=100)
        for method in CALLS
        for name, budget in budgets.items()
    }


TOOLS_BY_METHOD = Figure(
    name="tools-by-method",
    title="Every eviction method by the tokens of tool calls that it flips, SmolLM2-135M",
    experiments=("methods_tools",),
    chart=_flips,
    metrics=frozenset({"kl", "tool_flip", "kv_bytes_live", "prompt_tokens"}),
    claims=(
        Claim(
            "With a quarter of the rows, kvzip flips at most half as many tokens of arguments as snapkv",
            pick("tool_flip", policy="kvzip:budget=0.25", kind="argument"),
            pick("tool_flip", policy="snapkv:budget=0.25", kind="argument"),
            at_most=0.5,
            tolerance=0.3,
        ),
        Claim(
            "With half, kvzip flips no token of a name in a hundred",
            pick("tool_flip", policy="kvzip", kind="name"),
            at_most=0.01,
            tolerance=0.5,
        ),
        Claim(
            "With half, random flips at least three times as many tokens of arguments as snapkv",
            pick("tool_flip", policy="random", kind="argument"),
            pick("tool_flip", policy="snapkv", kind="argument"),
            at_least=3,
            tolerance=0.3,
        ),
        Claim(
            "With half, snapkv flips no fewer tokens of names than random",
            pick("tool_flip", policy="snapkv", kind="name"),
            pick("tool_flip", policy="random", kind="name"),
            at_least=1,
            tolerance=0.2,
        ),
    ),
    shows="Calls of BFCL; rows are evicted once, at the end of the prompt, and the call is led through what is left. A "
    "flip: the most probable token is another one than that of `full`. To the left is nearer to `full`. "
    "[What the ranking says](../quality.md).",
    numbers={
        "calls": Number(pick("prompt_tokens", "count", policy="full")),
        "tokens": Number(pick("prompt_tokens", policy="full"), digits=3),
        **_flipped("name"),
        **_flipped("argument"),
    },
)
TOOLS_BY_METHOD_BUNDLED = Figure(
    name="tools-by-method-bundled",
    title="Every eviction method by the tokens of tool calls that it flips, the bundled model",
    experiments=("methods_tools_bundled",),
    chart=_flips_of_bundled,
    metrics=frozenset({"kl", "tool_flip", "kv_bytes_live", "prompt_tokens"}),
    claims=(
        Claim(
            "With half of the rows, knorm flips at least three times as many tokens of names as random",
            pick("tool_flip", policy="knorm", kind="name"),
            pick("tool_flip", policy="random", kind="name"),
            at_least=3,
            tolerance=0.3,
        ),
        Claim(
            "With a quarter, snapkv flips no token of a name in a hundred",
            pick("tool_flip", policy="snapkv:budget=0.25", kind="name"),
            at_most=0.01,
            tolerance=0.5,
        ),
        Claim(
            "With a quarter, kvzip flips at least one token of a name in twenty",
            pick("tool_flip", policy="kvzip:budget=0.25", kind="name"),
            at_least=0.05,
            tolerance=0.3,
        ),
    ),
    shows="Calls at the eighth turn of an agent's conversations, led through what every method leaves of the prompt. "
    "[What the ranking says](../quality.md).",
    numbers={
        "calls": Number(pick("prompt_tokens", "count", policy="full")),
        "tokens": Number(pick("prompt_tokens", policy="full"), digits=4),
        **_flipped("name"),
        **_flipped("argument"),
    },
)


def _found() -> dict[str, Number]:
    """Return right answers of the methods that the docs name, in prompts, with a quarter and with half of the rows."""
    return {
        f"{method}-{name}{'' if workload == KNOWN else '-unknown'}": Number(
            pick("accuracy", "sum", policy=f"{method}{budget}", workload=workload)
        )
        for method in ("oracle", "kvzip", "triattention", "sepllm", "random")
        for name, budget in (("quarter", ":budget=0.25"), ("half", ""))
        for workload in (KNOWN, UNKNOWN)
    }


NEEDLE_BY_OWN_SCORES = Figure(
    name="needle-by-own-scores",
    title="Methods with scores of their own on a needle in 1,000 tokens, SmolLM2-135M",
    experiments=("methods_needle",),
    chart=lambda saved: method_ranking(saved.rows, TITLES),
    metrics=frozenset({"accuracy", "kv_bytes_live"}),
    claims=(
        Claim(
            "full finds the needle where the question comes later, too",
            pick("accuracy", policy="full", workload=UNKNOWN),
            at_least=0.95,
        ),
        Claim(
            "oracle finds the needle with a quarter of the rows",
            pick("accuracy", policy="oracle:budget=0.25", workload=KNOWN),
            at_least=0.9,
        ),
        Claim(
            "kvzip finds it with a quarter, and without knowing the question",
            pick("accuracy", policy="kvzip:budget=0.25", workload=UNKNOWN),
            at_least=0.9,
        ),
        Claim(
            "sepllm does not find it with a quarter",
            pick("accuracy", policy="sepllm:budget=0.25", workload=KNOWN),
            at_most=0.3,
        ),
    ),
    shows="Rows are evicted once, at the end of the prompt (or of the text before the question), and none while the "
    "answer is decoded. [What the ranking says](../quality.md).",
    numbers={"asked": Number(pick("accuracy", "count", policy="full", workload=KNOWN)), **_found()},
)
BUNDLED_KNOWN, BUNDLED_UNKNOWN = "retrieval", "retrieval:question=none"
BUNDLED_QUARTERS = {
    **{
        method: f"{method}:{QUARTER}"
        for method in (
            "keydiff", "local", "cur", "compactor", "lagkv", "random", "h2o", "snapkv", "criticalkv", "expected",
            "tova", "knorm", "kvzip",
        )
    },
    "adakv-keydiff": f"adakv(keydiff):{QUARTER}",
    "local-knorm": f"local(knorm):{QUARTER}",
    "pyramidkv": f"pyramidkv:{QUARTER},window=8",
}  # fmt: skip
"""Methods whose right answers the docs name, with a quarter of the rows."""
NEEDLE_BY_METHOD_BUNDLED = Figure(
    name="needle-by-method-bundled",
    title="Every eviction method on a fact in 700 tokens, the bundled model",
    experiments=("methods_needle_bundled",),
    chart=lambda saved: method_ranking(
        saved.rows, {BUNDLED_KNOWN: "question known", BUNDLED_UNKNOWN: "question unknown"}
    ),
    metrics=frozenset({"accuracy", "kv_bytes_live"}),
    claims=(
        Claim(
            "full finds the fact where the question comes later, too",
            pick("accuracy", policy="full", workload=BUNDLED_UNKNOWN),
            at_least=0.95,
        ),
        Claim(
            "snapkv finds it with a quarter of the rows where it knows the question",
            pick("accuracy", policy=f"snapkv:{QUARTER}", workload=BUNDLED_KNOWN),
            at_least=0.9,
        ),
        Claim(
            "keydiff finds it with a quarter where nothing knows the question",
            pick("accuracy", policy=f"keydiff:{QUARTER}", workload=BUNDLED_UNKNOWN),
            at_least=0.9,
        ),
        Claim(
            "knorm finds it less often than random does, with half of the rows",
            pick("accuracy", policy="knorm", workload=BUNDLED_KNOWN),
            pick("accuracy", policy="random", workload=BUNDLED_KNOWN),
            at_most=0.5,
            tolerance=0.5,
        ),
    ),
    shows="One fact of a document of facts and filler is asked for. Rows are evicted once, at the end of the prompt "
    "(or of the document, before the question). [What the ranking says](../quality.md).",
    numbers={
        "asked": Number(pick("accuracy", "count", policy="full", workload=BUNDLED_KNOWN)),
        **{
            f"{method}-quarter{suffix}": Number(pick("accuracy", "sum", policy=policy, workload=workload))
            for method, policy in BUNDLED_QUARTERS.items()
            for suffix, workload in (("", BUNDLED_KNOWN), ("-unknown", BUNDLED_UNKNOWN))
        },
    },
)
ON_METHODS: tuple[Figure, ...] = (
    KL_BY_METHOD,
    TOOLS_BY_METHOD,
    TOOLS_BY_METHOD_BUNDLED,
    NEEDLE_BY_OWN_SCORES,
    NEEDLE_BY_METHOD_BUNDLED,
)
