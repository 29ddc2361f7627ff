"""Models with state are cut where checkpoints would be, whether or not any are kept: in 16 bits chunks show."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvlab.decoder import Decoder
from kvlab.decoder.prefill.segments import checkpoint_segments
from kvlab.models import LoadedModel, load
from tests.architectures import RECIPES, write_recipe
from tests.lab import chat

RECURRENT = ["falcon-h1", "mamba2"]


@pytest.fixture(scope="module", params=RECURRENT)
def in_bfloat16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp(request.param)
    write_recipe(RECIPES[request.param], folder)
    return load(folder, dtype="bfloat16")


@pytest.mark.parametrize("lengths", [(150, 90), (60, 200, 33), (300,)])
def test_the_first_request_under_tiered_is_answered_as_under_full(
    in_bfloat16: LoadedModel, tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    prompt = chat(*lengths)
    logits: list[np.ndarray] = []

    def keep(_: mx.array, values: mx.array) -> mx.array:
        logits.append(np.array(values[0].astype(mx.float32)))
        return values

    for policy in ("full", f"tiered:dir={tmp_path}"):
        with Decoder(in_bfloat16, policy) as decoder:
            decoder.generate(prompt, max_tokens=6, logits_processors=[keep])
    half = len(logits) // 2
    assert half >= 1
    for one, other in zip(logits[:half], logits[half:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_cuts_lie_at_the_first_and_the_last_boundaries_and_every_so_many_tokens() -> None:
    context = [2 if i in (9, 30, 50, 70, 90, 110) else 5 for i in range(160)]
    segments = checkpoint_segments(context, 0, {2}, every=64)
    cuts = np.cumsum([len(segment) for segment in segments]).tolist()
    assert sum(segments, []) == context
    assert cuts == [10, 51, 64, 71, 91, 111, 128, 160]
    assert [len(one) for one in checkpoint_segments(context, 111, {2}, every=64)] == [17, 32]
    assert [len(one) for one in checkpoint_segments(context, 111, {2}, every=1024)] == [48, 1]
