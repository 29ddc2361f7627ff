"""Every model of the installed mlx-lm, small and with random weights: right, or one by one, or refused by name.

The class: whatever its layers and caches are, lossless policies give the answers of no cache: alone, in a ragged
batch, in forks of one prefix, and after a restart. A few kinds run each time, all of them with ``-m soak``.
"""

from __future__ import annotations

import ast
from pathlib import Path

import mlx_lm.models
import pytest

from kvlab.decoder import Decoder
from kvlab.errors import ModelError
from tests.zoo.builder import build, small_model
from tests.zoo.checks import check_lossless

NOT_BUILT = {
    "bitnet": "its products are a Metal kernel, which a CPU does not have",
    "muse_spark": "its attention is a Metal kernel, which a CPU does not have",
    "olmo": "importing it ends the process unless the package ai2-olmo is installed",
    "prism_hadamard_qwen35": "it takes packs of 2-bit weights only, with a manifest of their rotations",
}
"""Modules that no small model is made of here, and why."""

REFUSED = {"phi3small": "prompt in two chunks"}
"""Modules that are refused whatever the policy, and what the error names."""

NOT_REUSED = {"deepseek_v41": "its caches cannot be filled from outside"}
"""Modules that are refused for policies that reuse KV, and why."""

ONE_BY_ONE = {
    "afm7": "logits differ", "baichuan_m1": "logits differ", "bailing_moe_linear": "logits differ",
    "deepseek_v41": "no batched form", "gemma2": "fails for a batch", "gpt_bigcode": "fails for a batch",
    "jamba": "logits differ", "llama4": "no batched form", "longcat_flash_ngram": "fails for a batch",
    "mamba": "logits differ", "minimax_m3_vl": "blocks of keys", "nemotron-nas": "do not use their caches",
    "nemotron_h": "logits differ", "olmo_hybrid": "logits differ", "recurrent_gemma": "logits differ",
    "rwkv7": "logits differ",
}  # fmt: skip
"""Modules whose sequences are computed one after another, and why."""

WRONG_ALONE = {"plamo3": "its mask shows a token one row more than its caches keep"}
"""Modules that mlx-lm computes wrongly alone and kvlab rightly."""

EACH_TIME = [
    "afm7", "baichuan_m1", "deepseek_v32", "deepseek_v41", "gemma3n", "iquestloopcoder", "jamba", "kimi_linear",
    "minimax_m3_vl", "nemotron-nas", "plamo3", "recurrent_gemma",
]  # fmt: skip
"""Kinds of caches and layers that ``tests/architectures.py`` lacks: run with every change."""


def modules() -> list[str]:
    """Return the names of all files of ``mlx_lm.models`` that define a model."""
    return sorted(
        file.stem
        for folder in mlx_lm.models.__path__
        for file in Path(folder).glob("*.py")
        if any(isinstance(node, ast.ClassDef) and node.name == "Model" for node in ast.parse(file.read_text()).body)
    )


TRIED = [name for name in modules() if name not in NOT_BUILT and name not in REFUSED]


def test_every_model_of_the_installed_mlx_lm_is_built_or_has_a_reason_not_to_be() -> None:
    """A new one is built from SIZES, or this says which field or which reason is missing."""
    missing = {}
    for name in TRIED:
        try:
            build(name)
        except Exception as error:  # noqa: BLE001 - a model's code may raise nearly everything
            missing[name] = f"{type(error).__name__}: {error}"
    assert missing == {}
    known = {*NOT_BUILT, *REFUSED, *NOT_REUSED, *ONE_BY_ONE, *WRONG_ALONE, *EACH_TIME}
    assert known <= {*modules()}, "a list names a module that mlx-lm no longer has"


@pytest.mark.parametrize(
    "name", [name if name in EACH_TIME else pytest.param(name, marks=pytest.mark.soak) for name in TRIED]
)
def test_lossless_policies_give_the_answers_of_no_cache(name: str, tmp_path: Path) -> None:
    loaded = small_model(name)
    ties = check_lossless(loaded, tmp_path, reuses=name not in NOT_REUSED, as_mlx_lm=name not in WRONG_ALONE)
    assert ties <= 2, "so many answers part at a tie by more than chance"
    with Decoder(loaded, "full") as decoder:
        assert bool(decoder.batching) is (name not in ONE_BY_ONE)
        assert decoder.batching or ONE_BY_ONE[name] in str(decoder.batching)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_right_is_refused_by_name(name: str) -> None:
    model = small_model(name)
    for policy in ("full", "paged", "quantized:bits=8"):
        with pytest.raises(ModelError, match=f"{name} cannot be used, because .*{REFUSED[name]}"):
            Decoder(model, policy)


@pytest.mark.parametrize("name", NOT_REUSED)
def test_reuse_that_cannot_be_right_is_refused_by_name(name: str) -> None:
    for policy in ("paged", "tiered"):
        with pytest.raises(ModelError, match=f"{name}, because {NOT_REUSED[name]}.*: use full"):
            Decoder(small_model(name), policy)
