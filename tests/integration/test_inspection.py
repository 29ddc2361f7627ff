"""Watching real runs: tokens and their states, blocks and their tiers, distributions, times."""

from __future__ import annotations

import pytest

from kvlab.charts.ttft import ttft_parts
from kvlab.errors import KvlabError, RunError
from kvlab.experiments.run import compare
from kvlab.inspection import divergence, follow_blocks, watch
from kvlab.inspection.request_trace import pieces
from kvlab.inspection.tokens import EVICTED, KEPT, RESTORED, SHARED
from kvlab.models import LoadedModel
from kvlab.widgets import watch_evictions
from kvlab.workloads import load_workload

DOCUMENT = "The code of @mira is #417. The sky was grey that day. Nobody came by train. " * 6


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [f"{DOCUMENT} What is the code of @mira?", f"{DOCUMENT} Who came by train?", f"{DOCUMENT} And the sky?"]


def test_the_pieces_are_the_text(bundled: LoadedModel, prompts: list[str]) -> None:
    ids = bundled.render([{"role": "user", "content": prompts[0]}])
    assert "".join(pieces(ids, bundled)) == bundled.decode(ids)


CHARACTERS = ["½ of it: ünïcode", "日本語のテキスト", "👩\u200d👧 and 😀😀", "é"]


@pytest.mark.parametrize("text", CHARACTERS)
def test_a_character_of_several_tokens_is_whole(bundled: LoadedModel, text: str) -> None:
    ids = bundled.encode(text)
    texts = pieces(ids, bundled)
    assert len(texts) == len(ids) and "".join(texts) == text
    begun = pieces(ids[:-1], bundled)  # an answer may be cut within a character
    assert len(begun) == len(ids) - 1 and text.startswith("".join(begun).rstrip("\ufffd"))


def test_an_evicted_token_is_one_that_every_head_lost(bundled: LoadedModel, prompts: list[str]) -> None:
    (seen,) = watch("snapkv:budget=0.4", prompts[:1], bundled, max_tokens=6)
    states = seen.states(0)
    assert len(states) == seen.prompt_tokens + 1
    gone = {i for i, token in enumerate(states) if token.state == EVICTED}
    for layer in seen.layers:
        for head in seen.heads:
            own = {i for i, token in enumerate(seen.states(0, layer, head)) if token.state == EVICTED}
            assert gone <= own and len(own) == seen.prompt_tokens - round(0.4 * seen.prompt_tokens)


def test_reuse_shows_as_restored_and_shared(bundled: LoadedModel, prompts: list[str]) -> None:
    first, second, third = watch("paged", prompts, bundled, max_tokens=6)
    assert {token.state for token in first.states()} == {KEPT}
    states = [token.state for token in second.states()]
    assert states.count(RESTORED) == second.completion.cached_tokens > 100 and states[0] == RESTORED
    assert [token.state for token in third.states()].count(SHARED) > 100


def test_watch_without_prompts_is_refused() -> None:
    with pytest.raises(RunError, match="no prompts to watch"):
        watch("full", [])
    with pytest.raises(RunError, match="no prompts to watch"):
        watch_evictions({})


def test_the_panel_runs_what_is_chosen(bundled: LoadedModel, prompts: list[str]) -> None:
    made = watch_evictions({"code": prompts[0], "train": prompts[1]}, bundled, max_tokens=6)
    before = made._picture.value
    made.set(step=2, layer=1, head=0)
    assert "step 2 · layer 1, KV head 0" in made._picture.value != before
    made.set(policy="nonsense")
    assert made.message.startswith("unknown policy 'nonsense'")
    made.set(policy="full", reuse=True, request="train")
    assert made.message == "" and made.values["layer"] == "all" and "restored" in made._picture.value


def test_blocks_move_from_ram_to_ssd_to_gone(bundled: LoadedModel) -> None:
    workload = load_workload("retrieval", tokens=250, n=4, turns=1, count=lambda text: len(bundled.encode(text)))
    found = follow_blocks("tiered:ram=1200KB,ssd=2400KB,write=through", workload, bundled)
    assert found.steps["step"].to_list() == [1, 2, 3, 4]
    last = found.blocks.filter(step=4)
    assert set(last["tier"]) == {"ram", "ssd", "gone"}
    assert last.filter(conversation="retrieval-0")["tier"].to_list()[-1] == "gone"
    assert set(last.filter(conversation="retrieval-3")["tier"]) == {"ram"}
    with pytest.raises(KvlabError, match="keeps nothing at rest"):
        follow_blocks("full", workload, bundled)


def test_divergence_is_nothing_without_loss_and_grows_with_it(bundled: LoadedModel) -> None:
    (request,) = load_workload("retrieval", tokens=200).requests()
    assert request.reference is not None
    prompt, answer = bundled.render(list(request.messages)), bundled.encode(request.reference["content"])
    full, eight, two = (
        divergence(policy, prompt, answer, bundled) for policy in ("full", "quantized:bits=8", "quantized:bits=2")
    )
    # a decoder's step and a whole prompt may call other kernels of one BLAS, whose sums differ in the last digit
    assert full.shape == (len(answer),) and full.max() < 1e-9
    assert eight.max() < 0.01 < two.max()
    with pytest.raises(RunError, match="one token or more"):
        divergence("full", prompt, [], bundled)


def test_the_parts_of_a_real_run_add_up(bundled: LoadedModel) -> None:
    results = compare(["full", "paged"], "chat", bundled, turns=2, progress=False)
    parts = ttft_parts(results.events)
    assert (parts["ms"] >= 0).all()
    for row in results.frame().filter(metric="ttft_ms").iter_rows(named=True):
        own = parts.filter(policy=row["policy"], turn=row["turn"])
        assert own["ms"].sum() == pytest.approx(row["value"], rel=1e-6)
    restored = parts.filter(policy="paged", turn=2, part="restore")["ms"]
    assert restored.item() > 0
