"""In 16 bits no batch is exact: kvlab's lies no farther from the request alone than mlx-lm's own batch does.

Attention and products are computed as on a GPU, in float32 with one rounding at the end, in orders that depend on the
shape of the work (tests/metal). What remains are roundings to 16 bits that fall the other way now and then: the mean
of a few requests is uncertain, so that it may exceed the bound by twice its standard error, and no more. Attention
that rounds scores, weights or sums to 16 bits exceeds it many times over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from kvlab.decoder.logit_distance import Distances, bound
from tests.batch_distance import MLX_LM, forked, measure, ragged
from tests.conftest import MakeModel
from tests.helpers import FOUR_BITS, SIXTEEN_BITS, Weights
from tests.metal.fused_attention import fused, is_installed
from tests.metal.products import summed_in_float32

WEIGHTS = [*SIXTEEN_BITS, FOUR_BITS[-1]]
LAYERS = 3
BATCHES = {"ragged": ragged(1), "forked": forked(2)}


@pytest.fixture(scope="module", autouse=True)
def fused_attention() -> Iterator[None]:
    """Attention as on Metal, on every backend."""
    before = mx.fast.scaled_dot_product_attention
    if not is_installed():
        mx.fast.scaled_dot_product_attention = fused(before)
    yield
    mx.fast.scaled_dot_product_attention = before


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_a_batch_lies_no_farther_from_the_request_alone_than_mlx_lms(
    weights: Weights, make_model: MakeModel, tmp_path: Path
) -> None:
    policies = ["full", "paged:block=16", f"paged:block=16|tiered:dir={tmp_path}"]
    total: dict[str, Distances] = {}
    lines = [f"{'':38}{'distance':>10}{'error':>10}{'of mlx-lm':>10}{'parted':>8}"]
    for architecture in ("llama", "qwen3"):
        loaded = make_model(architecture, weights, num_hidden_layers=LAYERS)
        for kind, prompts in BATCHES.items():
            with summed_in_float32(loaded.model):
                found = measure(loaded, prompts, policies)
            lines += _rows(f"{architecture} {weights} {kind}", found)
            total = {way: total.get(way, Distances()) + one for way, one in found.items()}
    table = "\n".join([*lines, *_rows(f"all {weights}", total)])
    print("\n" + table)
    own = total.pop(MLX_LM)
    assert own.mean > 0, "nothing is measured: the emulation gives a batch what it gives one sequence"
    for other in total.values():
        assert other.mean <= bound(own, other), "\n" + table


def _rows(title: str, found: dict[str, Distances]) -> list[str]:
    own = found[MLX_LM].mean or float("nan")
    return [
        title,
        *(
            f"  {way.split(':dir')[0]:36}{one.mean:10.5f}{one.error:10.5f}{one.mean / own:10.2f}"
            f"{one.parted:>5}/{len(one.values)}"
            for way, one in found.items()
        ),
    ]
