"""A model whose layers compute in another dtype than most of its weights have gives the same answer from stored KV."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from tests.helpers import random_model

PROMPT = [int(token) for token in np.random.default_rng(0).integers(5, 200, 90)]


def mixed_model(architecture: str, folder: Path, bits: int | None) -> LoadedModel:
    """Layers in bfloat16, 4-bit where asked for, below a float32 head that holds most of the model's numbers."""
    loaded = random_model(architecture, folder)
    network = loaded.model
    network.set_dtype(mx.bfloat16)
    if bits is not None:
        for layer in network.model.layers:
            nn.quantize(layer, group_size=64, bits=bits)
    head = network.lm_head.weight
    network.lm_head.weight = mx.concatenate([head.astype(mx.float32), mx.zeros((20_000, head.shape[1]))])
    mx.eval(network.parameters())
    return dataclasses.replace(loaded, dtype="float32")  # what most of the weights are


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("policy", ["tiered", "quantized:bits=8|tiered"])
def test_bfloat16_layers_below_a_float32_head_answer_alike_from_every_tier(
    tmp_path: Path, policy: str, bits: int | None
) -> None:
    loaded = mixed_model("qwen3", tmp_path / "model", bits)
    assert loaded.dtype == "float32"
    spec = f"{policy}:dir={tmp_path / 'store'}"
    answers = []
    for _ in range(2):
        with Decoder(loaded, spec, retain=0) as decoder:
            answers += [decoder.generate(PROMPT, max_tokens=12) for _ in range(2)]
    assert [set(answer.cached_by_tier) for answer in answers] == [set(), {"ram"}, {"ssd"}, {"ssd"}]
    assert len({tuple(answer.tokens) for answer in answers}) == 1
