"""Speeds: typed, read from files, fitted, and refused with what to write instead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvlab
from kvlab.advising import AdviceError
from kvlab.bench.cost import Samples, TimedRequest, speed_of
from kvlab.errors import SpeedError
from kvlab.speed import ROWS, Speed, fitted, read_speed


def test_typed_words_are_seconds_and_bytes() -> None:
    speed = read_speed(
        "prefill=500, attention=0.001, ram=10GB, ssd=2GiB, write=500MB, latency=0.1, restore_latency=0.02, "
        "decode=20, kv_bytes=4096"
    )
    assert speed == Speed(
        0.002, 0.05, 0.1, 1e-6, 0.0, 2.0 * 2**30, 10e9, 500e6, restore_s=0.02, token_bytes=4096, source="as given"
    )
    assert speed.prefill(0, 1000) == pytest.approx(2.0 + 1.0), "half of 1,000 tokens are before a token on average"


def test_what_is_not_typed_costs_nothing_or_the_usual() -> None:
    speed = read_speed("prefill=100")
    assert (speed.base_s, speed.token2_s, speed.restore_s, speed.step_s, speed.token_bytes) == (0, 0, 0, 0, 0)
    assert speed.restore(0, 0) == 0
    assert "decode_tokens_per_s" not in speed.row


def test_a_file_has_the_same_words_and_a_name(tmp_path: Path) -> None:
    file = tmp_path / "m4.json"
    file.write_text(json.dumps({"name": "M4 Pro, Qwen3-8B-4bit", "prefill": 450, "ssd": "3GB"}))
    assert read_speed(file) == Speed(1 / 450, ssd=3e9, source="M4 Pro, Qwen3-8B-4bit")


def test_rows_of_the_benchmark_are_read_back(tmp_path: Path) -> None:
    values = dict(zip(ROWS, (400.0, 0.001, 20.0, 0.1, 0.01, 9e9, 1e9, 3e8, 2048, 0.03, 0.5, 0.2), strict=True))
    rows = [
        {"metric": metric, "value": value, "unit": "", "model": "tiny", **({"tier": tier} if tier else {})}
        for (metric, tier), value in values.items()
    ]
    rows.append({"metric": "ratio", "value": 0.5, "unit": "x", "model": "tiny", "of": "a", "to": "b"})
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"rows": rows, "provenance": {"device": "CPU"}}))
    found = read_speed(file)
    assert found == Speed(
        1 / 400, 0.05, 0.1, 0.001 / 400 / 2, 0.03, 1e9, 9e9, 3e8,
        restore_s=0.01, token_bytes=2048, prefill_share=0.5, busy_s=0.2, source="CPU, tiny",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssd=2GB", "write prefill=450"),
        ("prefill=0", "write prefill=450"),
        ("prefill=fast", "prefill=fast is no number"),
        ("prefill=450,ssd=quick", "ssd=quick is no size; write bytes a second, such as ssd=2GB"),
        ("prefill=450,ram=0", "memory=0.0 must be more than 0"),
        ("prefill=450,latency=-1", "base_s=-1.0 must be 0 or more"),
        ("prefill=450,decode=-2", "decode=-2 must be more than 0"),
        ("prefil=450", "a speed has no 'prefil'; write some of name, prefill"),
        ("nowhere.json", "nowhere.json: no speed, and no file that can be read"),
    ],
)
def test_wrong_speeds_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SpeedError, match=says):
        read_speed(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[1]", "expected an object such as"),
        ('{"rows": [{"metric": "ratio"}]}', "has no prefill_tokens_per_s"),
        ('{"rows": 3}', "has no prefill_tokens_per_s"),
    ],
)
def test_files_that_hold_no_speed_say_so(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(content)
    with pytest.raises(SpeedError, match=says):
        read_speed(tmp_path / "cost.json")


@given(st.floats(0, 1), st.floats(1e-5, 1e-2), st.floats(0, 1e-6))
def test_a_curve_without_noise_is_found(base: float, token: float, token2: float) -> None:
    lengths = (500, 1000, 2000, 4000)
    found = fitted([(n, base + token * n + token2 * n * n) for n in lengths])
    for n in (700, 4000):
        assert found[0] + found[1] * n + found[2] * n * n == pytest.approx(base + token * n + token2 * n * n, rel=1e-6)


def test_samples_give_the_speed_that_made_them() -> None:
    wanted = Speed(0.002, 0.05, 0.1, 1e-7, 0.0, 1e9, 8e9, 3e8, restore_s=0.01, token_bytes=100, source="made")
    samples = Samples(steps=[0.05], written=[3e8])
    for n in (512, 1024, 2048, 3072, 4096):
        samples.note(TimedRequest(0, 0, 0, n), wanted.base_s + wanted.prefill(0, n) if n != 3072 else 99.0)
    for start in (1_000, 4_000):
        for more in (1, 33):
            for tier, size in (("ram", start * 10**5), ("ssd", start * 10**5)):
                restore = wanted.restore(size, 0) if tier == "ram" else wanted.restore(0, size)
                sample = TimedRequest(size if tier == "ram" else 0, size if tier == "ssd" else 0, start, more)
                samples.note(sample, wanted.base_s + restore + wanted.prefill(start, more))
    for n in (16, 1024):
        samples.beside[n] = [0.4 + wanted.prefill(0, n) / 0.5]
    samples.crowded_steps = [0.07]
    wanted = replace(wanted, beside_s=0.01, prefill_share=0.5, busy_s=0.4)
    found = speed_of(samples, 3072, token_bytes=100, source="made")
    for name in (
        "prefill_share",
        "busy_s",
        "token_s",
        "base_s",
        "token2_s",
        "memory",
        "ssd",
        "write",
        "restore_s",
        "step_s",
    ):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-6), name


def test_restores_that_look_quicker_than_nothing_are_fitted_without_a_latency() -> None:
    samples = Samples(steps=[0.05], written=[3e8])
    for n in (256, 512, 1024):
        samples.note(TimedRequest(0, 0, 0, n), n * 0.001)
    for tier, size, seconds in (("ram", 100, 0.001), ("ram", 400, 0.008), ("ssd", 100, 0.01), ("ssd", 400, 0.08)):
        samples.note(TimedRequest(size if tier == "ram" else 0, size if tier == "ssd" else 0, size, 1), seconds)
    found = speed_of(samples, 0, token_bytes=1, source="made")
    assert found.restore_s == 0 and 0 < found.ssd < found.memory


def test_advice_needs_a_speed_of_answers() -> None:
    speed: Any = Speed(0.002)
    with pytest.raises(AdviceError, match="give it step_s"):
        kvlab.advise(agents=1, turns=2, speed=speed)
