"""Teacher-forced workloads: distances from ``full`` are those that a plain forward pass gives, and rows say them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from kvlab.caches import make_caches
from kvlab.decoder import Decoder
from kvlab.decoder.teacher_forcing import Divergence, ForcedAnswer, distributions, divergences
from kvlab.errors import RunError, WorkloadError
from kvlab.experiments.forced_answers import forced_items
from kvlab.experiments.prompts import Prompts
from kvlab.experiments.run import compare, run
from kvlab.experiments.sweep import sweep
from kvlab.experiments.teacher_forced import TeacherForcedRunner
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.results import Results
from kvlab.results.rows import TOGETHER
from kvlab.workloads import Workload, WorkloadRequest, load_workload
from kvlab.workloads.forced import TeacherForced
from tests.conftest import MakeModel
from tests.helpers import Weights
from tests.tool_items import ITEMS, write_bfcl, write_trajectories

TEXT = "The badge of @mira is #417. " * 12 + "Nobody knows the locker of @tolu, and the desk is far away. " * 6


@pytest.fixture(scope="module")
def answers(bundled: LoadedModel) -> list[ForcedAnswer]:
    """Two prompts of other lengths, each with an answer of another length."""
    ids = bundled.encode(TEXT)
    return [ForcedAnswer(tuple(ids[:150]), tuple(ids[150:162])), ForcedAnswer(tuple(ids[40:120]), tuple(ids[120:140]))]


def forced(loaded: LoadedModel, policy: str, answers: Sequence[ForcedAnswer], at_once: int = 1) -> list[Divergence]:
    with Decoder(loaded, "full", max_concurrency=at_once) as decoder:
        own = distributions(decoder, answers)
    with Decoder(loaded, policy, max_concurrency=at_once) as decoder:
        return divergences(decoder, answers, own)


def plain(loaded: LoadedModel, one: ForcedAnswer, caches: list[Any]) -> np.ndarray:
    """Log-probabilities of a forward pass by hand: the prompt at once, then token by token."""
    logits = [loaded.model(mx.array([one.prompt]), cache=caches)[0, -1]]
    logits += [loaded.model(mx.array([[token]]), cache=caches)[0, -1] for token in one.answer[:-1]]
    stacked = mx.stack(logits).astype(mx.float32)
    return np.array(stacked - mx.logsumexp(stacked, axis=-1, keepdims=True), dtype=np.float64)


def kl(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (np.exp(own) * (own - other)).sum(axis=1)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_kv_is_as_far_off_as_with_the_cache_of_mlx_lm(
    bundled: LoadedModel, answers: list[ForcedAnswer], bits: int
) -> None:
    for one, found in zip(answers, forced(bundled, f"quantized:bits={bits},group=64", answers), strict=True):
        native = make_prompt_cache(bundled.model)
        own = plain(bundled, one, native)
        other = plain(bundled, one, [QuantizedKVCache(group_size=64, bits=bits) for _ in native])
        np.testing.assert_allclose(found.kl, kl(own, other), rtol=0.05, atol=2e-6)
        np.testing.assert_array_equal(found.agrees, own.argmax(axis=1) == other.argmax(axis=1))
        taken = other[np.arange(len(one.answer)), list(one.answer)]
        np.testing.assert_allclose(found.log_prob, taken, atol=2e-3)


@pytest.mark.parametrize(
    ("policy", "at_once"), [("rotating:window=48", 1), ("snapkv:budget=0.5", 2), ("knorm:budget=0.5", 1)]
)
def test_eviction_acts_as_in_plain_use_alone_and_side_by_side(
    bundled: LoadedModel, answers: list[ForcedAnswer], policy: str, at_once: int
) -> None:
    for one, found in zip(answers, forced(bundled, policy, answers, at_once), strict=True):
        own = plain(bundled, one, make_prompt_cache(bundled.model))
        other = plain(bundled, one, make_caches(bundled.model, policy, prompt_tokens=len(one.prompt)))
        np.testing.assert_allclose(found.kl, kl(own, other), rtol=0.02, atol=1e-4)
        assert found.kl.max() > 1e-4


@pytest.mark.parametrize("policy", ["rotating:window=4096", "tiered:ram=8MB,ssd=8MB"])
def test_what_loses_nothing_is_no_distance_away(
    bundled: LoadedModel, answers: list[ForcedAnswer], policy: str, tmp_path: Path
) -> None:
    for found in forced(bundled, policy.replace("tiered:", f"tiered:dir={tmp_path},"), answers * 2, at_once=2):
        assert found.kl.max() < 1e-5 and found.agrees.all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_and_quantised_weights_are_measured_in_float32(make_model: MakeModel, dtype: str) -> None:
    loaded = make_model("llama", Weights(dtype, bits=4))
    one = [ForcedAnswer(tuple(loaded.encode("a text of some words " * 6)), tuple(loaded.encode("and more")))]
    (full,), (eight,), (two,) = (forced(loaded, p, one) for p in ("full", "quantized:bits=8", "quantized:bits=2"))
    assert full.kl.max() == 0 and full.agrees.all()
    assert 0 < eight.kl.mean() < two.kl.mean() and np.isfinite(two.log_prob).all()


def test_answers_that_cannot_be_forced_are_refused(bundled: LoadedModel) -> None:
    with pytest.raises(RunError, match="one token or more"):
        ForcedAnswer((1,), ())
    end = next(iter(bundled.eos))
    with Decoder(bundled) as decoder, pytest.raises(RunError, match="behind a token that ends"):
        distributions(decoder, [ForcedAnswer((5,), (end, 7))])
    with Decoder(bundled) as decoder:
        assert len(distributions(decoder, [ForcedAnswer((5,), (7, end))])[0].log_probs) == 2


# -- workloads --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools(bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("tools")
    write_bfcl(folder / "items.json")
    write_trajectories(folder / "shop_talks.json")
    policies = ["full", "paged", "quantized:bits=8", "quantized:bits=2"]
    return compare(policies, f"tools:{folder}", bundled, concurrency=4, progress=False)


def test_tools_report_names_and_arguments_apart_from_prose(tools: Results) -> None:
    rows = tools.frame()
    flips = rows.filter(metric="tool_flip")
    assert set(flips["kind"]) == {"prose", "name", "argument", "syntax"}
    # Two items of one call, one of two calls, three calls and two texts of conversations.
    counts = {kind: flips.filter(kind=kind, policy="paged").height for kind in ("name", "argument", "prose")}
    assert counts == {"name": 6, "argument": 6, "prose": 2}
    assert rows.filter(metric="equal_call", policy="full")["value"].to_list() == [1.0] * 6
    assert set(rows["conversation"]) == {"shop_talks-0", "shop_talks-1", *(item["id"] for item, _ in ITEMS)}


def test_calls_that_a_model_writes_by_itself_can_be_read(tools: Results) -> None:
    answers = tools.answers()
    assert answers.height == 6 * 4 and (answers["answer_tokens"] > 0).all()
    assert answers.filter(conversation="one_1")["question"].str.contains("Roll 12 dice").all()
    assert answers.filter(conversation="one_1")["wanted"].str.contains("roll").all()
    assert answers.filter(policy="paged")["as_full"].all() and not answers["as_full"].all()
    sheet = tools.said()
    assert len(sheet.questions) == 6 and "right" not in repr(sheet) and "wrong" not in repr(sheet)


def test_lossless_policies_flip_nothing_and_few_bits_do(tools: Results) -> None:
    rows = tools.frame()
    assert rows.filter(metric="tool_flip", policy="paged")["value"].max() == 0
    assert rows.filter(metric="kl", policy="paged")["value"].max() < 1e-6
    assert rows.filter(metric="equal_call", policy="paged")["value"].min() == 1
    eight, two = (rows.filter(metric="kl", policy=p)["value"].mean() for p in ("quantized", "quantized:bits=2"))
    assert eight < 0.05 < two
    assert rows.filter(metric="tool_flip", policy="quantized:bits=2")["value"].mean() > 0.05


def test_tools_are_saved_shown_and_reported(tools: Results, tmp_path: Path) -> None:
    from kvlab.results.report import figures, report_html

    loaded = Results.load(tools.save(tmp_path / "run"))
    assert "argument flips" in repr(loaded) and "equal calls" in loaded._repr_html_()
    pareto, flips = figures(loaded)
    assert "of calls equal" in pareto.see and "hconcat" in flips.chart.to_dict()
    page = report_html(loaded, title="t", lead="l")
    assert "argument flips" in page and "What it said" in page
    assert "nearest" in loaded.verdict().sentence and "right" not in loaded.verdict().text()


def test_kl_of_a_text_is_reported_by_part_and_by_position(bundled: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    results = compare(["full", "rotating:window=32"], f"kl:{path}", bundled, n=2, tokens=100, progress=False)
    rows = results.frame()
    parts = rows.filter(pl_not_together(rows))
    for metric in ("kl", "top1", "perplexity"):
        assert parts.filter(metric=metric, policy="rotating:window=32")["conversation"].to_list() == [
            "text-0",
            "text-1",
        ]
    assert parts.filter(metric="kl", policy="full")["value"].to_list() == [0.0, 0.0]
    assert parts.filter(metric="kl", policy="rotating:window=32")["value"].min() > 0
    assert parts.filter(metric="perplexity")["value"].min() > 1
    assert parts.filter(metric="prompt_tokens")["value"].to_list() == [100.0] * 4
    places = rows.filter(metric="kl", policy="full", kind=TOGETHER)["position"].to_list()
    assert places == [2**i for i in range(len(places))] and len(places) > 4
    assert "perplexity" in repr(results)


def pl_not_together(rows: Any) -> Any:
    return rows["kind"] != TOGETHER


def test_kl_of_conversations_forces_their_answers(bundled: LoadedModel, tmp_path: Path) -> None:
    path = write_trajectories(tmp_path / "shop_talks.jsonl")
    rows = run("quantized:bits=4", f"kl:{path}", bundled, n=1, progress=False).frame()
    kls = rows.filter(pl_not_together(rows)).filter(metric="kl")
    assert kls["turn"].to_list() == [1, 2, 3, 4] and 0 < kls["value"].max() < 10


def test_a_text_shorter_than_its_context_is_used_whole(bundled: LoadedModel, tmp_path: Path) -> None:
    """The class: any length of text, from two tokens on."""
    for words in (1, 3, 40):
        path = tmp_path / f"{words}.txt"
        path.write_text("badge " * words + "#417")
        requests = load_workload(f"kl:{path}", n=3).requests()
        for item in forced_items(requests, Prompts(bundled, requests)):
            assert item.forced.prompt and item.forced.answer
            assert len(item.forced.prompt + item.forced.answer) <= len(bundled.encode(path.read_text()))
    (tmp_path / "one.txt").write_text("7")
    with pytest.raises(WorkloadError, match="longer text"):
        forced_items(load_workload(f"kl:{tmp_path}/one.txt").requests(), Prompts(bundled, []))


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("kl:{}/none.txt", {}, "No such file"),
        ("kl:{}/empty.txt", {}, "is empty"),
        ("kl:{}/bytes.txt", {}, "not readable as UTF-8"),
        ("kl:{}/text.txt", {"turns": 2}, "turns applies to conversations"),
        ("kl:{}/talks.jsonl", {"tokens": 200}, "tokens applies to texts"),
        ("kl", {}, "kl:FILE"),
        ("tools", {}, "tools:PATH"),
    ],
)
def test_inputs_that_cannot_be_forced_say_what_to_write(
    tmp_path: Path, spec: str, options: dict[str, Any], says: str
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "talks.jsonl").write_text(json.dumps([{"role": "user", "content": "a"}]))
    with pytest.raises(WorkloadError, match=says):
        load_workload(spec.format(tmp_path), **options)


def test_what_means_nothing_for_forced_answers_and_a_prompt_beyond_the_context_are_refused(
    bundled: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    for option, value in {"restart": True, "metrics": ["contains"], "repeats": 2}.items():
        with pytest.raises(RunError, match=f"leave {option} out"):
            compare(["full"], f"kl:{path}", bundled, progress=False, **{option: value})
        with pytest.raises(RunError, match=f"leave {option} out"):
            run("paged", f"kl:{path}", bundled, progress=False, **{option: value})
    short = copy.copy(bundled)
    short.__dict__["context_length"] = 200
    with pytest.raises(RunError, match="fewer turns or tokens"):
        compare(["full"], f"kl:{path}", short, tokens=150, progress=False)


class Echo(TeacherForced):
    """A workload of a user's own, by its class alone."""

    name = "echo-of-tests"

    def requests(self) -> list[WorkloadRequest]:
        messages = ({"role": "user", "content": "Say hello."},)
        reference = {"role": "assistant", "content": "hello you"}
        return [WorkloadRequest("echo", 1, messages, (), reference, "chat", 8)]


def test_a_workload_of_ones_own_is_forced_where_its_class_says_so(bundled: LoadedModel) -> None:
    rows = run("quantized:bits=2", "echo-of-tests", bundled, progress=False).frame()
    assert rows.filter(metric="kl", kind="chat")["value"].item() > 0
    assert not Workload.teacher_forced


def test_an_experiment_file_takes_forced_workloads(tmp_path: Path) -> None:
    write_bfcl(tmp_path / "items.json")
    file = tmp_path / "tools.toml"
    file.write_text(f'workload = "tools:{tmp_path}/items.json"\npolicies = ["full", "quantized:bits={{bits}}"]\n'
                    "concurrency = 3\n[grid]\nbits = [8, 2]\n")  # fmt: skip
    results = sweep(file, tmp_path / "run", progress=False)
    assert results.policies == ["full", "quantized", "quantized:bits=2"]
    assert results.frame().filter(metric="equal_call").height == 3 * len(ITEMS)
    file.write_text(f"repeats = 2\n{file.read_text()}")
    with pytest.raises(RunError, match="leave repeats out"):
        sweep(file, tmp_path / "again", progress=False)


def test_a_sweep_leads_the_answers_through_full_once_for_all_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = TeacherForcedRunner._decoder

    def counted(self: TeacherForcedRunner, stack: Any, policy: Policy) -> Decoder:
        opened.append(str(policy))
        return real(self, stack, policy)

    monkeypatch.setattr(TeacherForcedRunner, "_decoder", counted)
    write_bfcl(tmp_path / "items.json")
    file = tmp_path / "tools.toml"
    policies = ["quantized:bits=2", "knorm:budget=0.5", "random:budget=0.5"]
    file.write_text(f'workload = "tools:{tmp_path}/items.json"\npolicies = {json.dumps(policies)}\n')
    together = sweep(file, tmp_path / "together", progress=False).frame()
    assert sorted(opened) == sorted(["full", *policies[:1], "knorm", "random"])
    for policy in policies:
        file.write_text(f'workload = "tools:{tmp_path}/items.json"\npolicies = ["{policy}"]\n')
        alone = sweep(file, tmp_path / policy[:4], progress=False).frame()
        for metric in ("kl", "tool_flip", "equal_call"):
            found = [frame.filter(metric=metric, policy=alone["policy"][0])["value"] for frame in (together, alone)]
            np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-7)
    opened.clear()
    sweep(file, tmp_path / "together", progress=False)
    assert not opened, "finished cells are not run again"
