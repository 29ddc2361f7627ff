"""The experiment on codecs measures what the decoder does: the same KL, the errors that codecs promise, real bytes."""

from __future__ import annotations

import pytest

from kvlab.experiments.teacher_forced import TeacherForcedRunner
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.workloads.base import WorkloadRequest
from kvlab.workloads.forced import TeacherForced, TextRequest
from tests.codecs_script import forced_kl, row_errors, texts

CONTEXT, ANSWER = 160, 24


class OneText(TeacherForced):
    name = "one-text"

    def requests(self) -> list[WorkloadRequest]:
        text = texts.texts()["docs"]
        return [TextRequest("a", 1, (), (), None, "docs", ANSWER, text=text, context_tokens=CONTEXT, part=0, parts=1)]


@pytest.mark.parametrize("spec", ["quantized:bits=4", "rotated:bits=2", "kivi:recent=32", "turboquant:bits=3"])
def test_kl_in_chunks_is_that_of_the_decoder_token_by_token(bundled: LoadedModel, spec: str) -> None:
    policy = Policy.parse(spec)
    runner = TeacherForcedRunner(OneText(), bundled, progress=False)
    rows = {one["metric"]: one["value"] for one in runner.run([policy]).rows if one.get("conversation")}
    led = runner.items[0].forced
    own = forced_kl.forced(bundled.model, Policy.parse("full"), led.prompt, led.answer)
    found = forced_kl.divergence(own, forced_kl.forced(bundled.model, policy, led.prompt, led.answer))
    assert rows["kl"] > 0 and found["kl"] == pytest.approx(rows["kl"], rel=0.05)
    assert abs(found["top1"] - rows["top1"]) <= 1 / ANSWER


def test_errors_fall_with_bits_and_bytes_are_those_of_16_bits(bundled: LoadedModel) -> None:
    ids = bundled.encode(texts.texts()["code"])[:256]
    layers = row_errors.layer_rows(bundled.model, ids, ANSWER)
    assert [layer.queries.shape[2] for layer in layers] == [ANSWER] * len(layers)
    raw = row_errors.stored_bytes(Policy.parse("full"), layers)
    assert raw == sum(2 * (layer.keys.size + layer.values.size) for layer in layers)
    four, eight = (Policy.parse(f"quantized:bits={bits}") for bits in (4, 8))
    assert row_errors.stored_bytes(four, layers) / raw == pytest.approx((4 + 32 / 64) / 16)
    coarse, fine = (row_errors.relative_errors(one, layers) for one in (four, eight))
    for kind in ("keys", "values", "rows", "attention"):
        assert 0 < fine[kind] < coarse[kind] < 1, kind
    # The error of rounding falls with the square of the step: 15 steps of a group, then 255.
    assert coarse["values"] / fine["values"] == pytest.approx(17**2, rel=0.2)
    assert all(value == 0 for value in row_errors.relative_errors(Policy.parse("full"), layers).values())


def test_texts_are_long_enough_and_of_three_kinds(bundled: LoadedModel) -> None:
    assert {one.kind for one in texts.Texts().requests()} == {"docs", "code", "agent"}
    for kind, text in texts.texts().items():
        assert len(bundled.encode(text)) > texts.PARTS * (texts.CONTEXT_TOKENS + texts.ANSWER_TOKENS), kind
    assert all("<|" not in text for text in texts.texts().values()), "no token of a template ends an answer"
