"""Advice: described workloads, the simulated loop in numbers, sizes in settings, the choice, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import altair as alt
import pytest

import kvlab
from kvlab.advising import AdviceError, AgentRequest, AgentWorkload, Description, Speed
from kvlab.advising.agents import shared_by_all
from kvlab.advising.designs import Need, designs
from kvlab.advising.judging import known_tokens, rank
from kvlab.advising.replay import replay_of
from kvlab.advising.simulation import LoopSimulation, Simulated
from kvlab.advising.speed import card_speed, given_speed
from kvlab.charts import on_dark
from kvlab.cli.main import main
from kvlab.decoder.config import DecoderConfig
from kvlab.policies import Policy
from kvlab.replay.kept_folder import KeptFolder
from kvlab.speed import fitted
from kvlab.store import Namespace
from kvlab.systems import System, config_of, policy_of

TENTH = Speed(token_s=0.1, step_s=0.01)
"""A prompt token takes 0.1 s, a step 0.01 s."""
ASKED = {"prefill": 500.0, "decode": 20.0, "what_if": False}


def requests(*prompts: int, said: int = 5, agents: int = 1, pause_s: float = 0.0) -> AgentWorkload:
    """Each agent asks prompts of these lengths, all different."""
    made, fresh = [], iter(range(1, 10**6))
    for agent in range(agents):
        for turn, length in enumerate(prompts, 1):
            prompt = tuple(next(fresh) for _ in range(length))
            reply = tuple(next(fresh) for _ in range(said))
            made.append(AgentRequest(f"agent-{agent}", turn, prompt, reply, pause_s))
    return AgentWorkload("test", tuple(made))


def simulate(workload: AgentWorkload, policy: str = "full", speed: Speed = TENTH, **settings: Any) -> Simulated:
    replay = replay_of(Policy.parse(policy), 1000)
    return LoopSimulation(replay, DecoderConfig(**settings), speed).run(workload)


def by_bytes(bits: int = 1000) -> Any:
    return lambda policy: bits if policy.codec.is_lossless else bits // 2


# -- workloads --------------------------------------------------------------------------------------------------------
def test_description_has_the_lengths_that_it_says() -> None:
    one = Description(agents=3, sessions=2, turns=2, system_tokens=50, turn_tokens=7, answer_tokens=5, think_tokens=3)
    own = one.workload().by_agent()
    assert len(own) == 3
    first, second, other, _ = own["agent-0"]
    assert (len(first.prompt), len(first.reply), len(second.prompt)) == (57, 8, 57 + 5 + 7)
    assert second.prompt[:62] == first.prompt + first.reply[3:], "thinking is left out of the history"
    assert other.prompt[:50] == first.prompt[:50]
    assert other.prompt[50:] != first.prompt[50:]
    assert shared_by_all(one.workload()) == 50


def test_tool_calls_are_requests_and_only_users_pause() -> None:
    own = Description(turns=2, tool_calls=2, pause_s=9.0).workload().requests
    assert [one.pause_s for one in own] == [9.0, 0.0, 0.0, 9.0, 0.0, 0.0]


def test_ids_of_a_description_are_none_of_those_to_avoid() -> None:
    own = Description(system_tokens=2000).workload(vocabulary=100, avoid={3, 4})
    assert not {3, 4} & {token for one in own.requests for token in one.prompt + one.reply}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Description(agents=0), "agents=0 is too small: write 1 or more"),
        (lambda: Description(turns=2, restarts=2).workload(), "write 0 to 1, or more turns"),
        (lambda: Description().workload(vocabulary=10), "a vocabulary of 10 is too small"),
        (lambda: AgentWorkload("none", ()), "the workload has no requests"),
        (lambda: given_speed(0, 20), "write --prefill 500 --decode 20"),
    ],
)
def test_impossible_numbers_are_refused(make: Any, says: str) -> None:
    with pytest.raises(AdviceError, match=says):
        make()


def test_known_tokens_are_those_of_the_last_answer_or_of_another_agent() -> None:
    own = Description(agents=2, turns=2, system_tokens=40, turn_tokens=10, answer_tokens=5).workload()
    assert known_tokens(own) == {
        ("agent-0", 0): 0, ("agent-0", 1): 55, ("agent-1", 0): 40, ("agent-1", 1): 55
    }  # fmt: skip


# -- the loop ---------------------------------------------------------------------------------------------------------
def test_a_request_alone_waits_for_its_prompt() -> None:
    found = simulate(requests(100, 200))
    assert [turn.ttft_s for turn in found.turns] == pytest.approx([10.0, 20.0])
    assert found.seconds == pytest.approx(30.0 + 2 * 4 * 0.01)


def test_attention_makes_later_tokens_dearer() -> None:
    speed = Speed(token_s=0.1, step_s=0.01, token2_s=0.001, base_s=0.5)
    assert [turn.ttft_s for turn in simulate(requests(100), speed=speed).turns] == pytest.approx([0.5 + 10 + 10])
    assert speed.prefill(60, 40) == pytest.approx(4.0 + 0.001 * (100**2 - 60**2))
    assert speed.fitting(60, speed.prefill(60, 40)) in (39, 40)


def test_one_at_a_time_waits_for_the_answer_before_it() -> None:
    found = simulate(requests(100, agents=2), max_concurrency=1)
    assert [turn.ttft_s for turn in found.turns] == pytest.approx([10.0, 10.0 + 4 * 0.01 + 10.0])


def test_prompts_that_are_not_interleaved_are_computed_before_answers_go_on() -> None:
    apart = {"max_concurrency": 2, "prefill_prompts": 1, "prefill_step": 50}
    first, _ = simulate(requests(100, said=500, agents=2), interleave="none", **apart).turns
    assert first.ttft_s == pytest.approx(10.0)
    whole = simulate(requests(100, said=500, agents=2), interleave="none", **apart).seconds
    chunks = simulate(requests(100, said=500, agents=2), interleave="chunks", **apart).seconds
    assert whole == pytest.approx(20.0 + 499 * 0.01)
    assert chunks == pytest.approx(20.0 + (2 + 499) * 0.01 - 0.02 + 0.02, abs=0.05)


def test_paced_prefill_leaves_answers_their_share_of_the_time() -> None:
    quick = Speed(token_s=0.001, step_s=0.01)
    long = requests(1000, said=400, agents=2)
    paced = simulate(long, speed=quick, max_concurrency=2, prefill_prompts=1).turns[1].ttft_s
    chunks = simulate(long, speed=quick, max_concurrency=2, prefill_prompts=1, interleave="chunks").turns[1].ttft_s
    assert paced > 1.3 * chunks


def test_agents_that_start_together_compute_a_common_prompt_once_where_live_kv_is_shared() -> None:
    own = Description(agents=4, turns=1, system_tokens=500, turn_tokens=20, answer_tokens=4).workload()
    computed = {
        policy: sum(turn.prompt_tokens - turn.cached for turn in simulate(own, policy).turns)
        for policy in ("paged", "paged:live=false")
    }
    assert computed == {"paged": 500 + 4 * 20, "paged:live=false": 4 * 520}


def test_only_ssd_is_there_after_a_restart() -> None:
    own = Description(turns=4, restarts=1).workload()
    ram, ssd = simulate(own, "paged"), simulate(own, "tiered")
    assert [turn.is_first for turn in ssd.turns] == [False, False, True, False]
    assert ram.turns[2].cached == 0
    assert ssd.turns[2].cached == ssd.turns[2].prompt_tokens - 120
    assert ssd.turns[2].read == ssd.turns[2].cached * 1000
    assert ssd.written > 0 == ram.written


def test_a_prompt_beyond_the_context_is_refused_or_cut() -> None:
    own = requests(100, 300)
    assert [turn.is_refused for turn in simulate(own, context=200).turns] == [False, True]
    cut = simulate(own, context=200, long_prompt="truncate-middle:keep=4", overflow="shift:keep=4")
    assert [turn.ttft_s for turn in cut.turns] == pytest.approx([10.0, 0.1 * (200 - (200 - 4) // 2)])


def test_live_memory_makes_requests_wait() -> None:
    own = requests(100, agents=4)
    assert simulate(own).memory_bytes == 4 * 105 * 1000
    assert simulate(own, live_memory=250_000).memory_bytes <= 250_000


def test_kept_folder_holds_no_more_than_its_budget_and_outlives_the_store() -> None:
    replay = replay_of(Policy.parse("paged:block=16|tiered:ram=100KB,ssd=200KB"), 1000)
    for _ in range(2):
        for first in range(8):
            started = replay.start(tuple(range(first * 1000, first * 1000 + 64)))
            replay.end(started, (5, 6))
        assert replay.ssd_bytes <= 200_000
        replay.restart()
        assert replay.start(tuple(range(7000, 7064))).cached == 63
    replay.close()


def test_kept_folder_has_nothing_of_a_key_that_it_never_got() -> None:
    folder = KeptFolder(1000, "lru")
    assert folder.contains([Namespace("m", "", "", 16).root()]) == set()
    assert folder.problems() == []


# -- speeds -----------------------------------------------------------------------------------------------------------
def test_a_curve_is_fitted_to_cold_prompts() -> None:
    samples = [(n, 0.2 + 0.002 * n + 1e-6 * n * n) for n in (100, 400, 800, 1600)]
    assert fitted(samples) == pytest.approx((0.2, 0.002, 1e-6))
    assert min(fitted([(100, 0.9), (200, 1.0), (400, 1.2), (800, 1.4)])) >= 0


def card(**row: Any) -> dict[str, Any]:
    curve = "12.5 ms + 1.5000 ms a token + 0.02000 µs a token squared; measured values lie 2.0% from it"
    rows = [
        {"probe": "curve", "metric": "cold_ttft_ms", "value": 780, "verdict": "note", "detail": curve} | row,
    ]
    return {"command": "audit", "rows": rows, "provenance": {"served_model": "tiny"}}


def test_compressed_blocks_have_no_plan() -> None:
    with pytest.raises(AdviceError, match="compresses its blocks, which has no plan to replay: compare it instead"):
        replay_of(Policy.parse("local|tiered"), 1000)


def test_a_card_gives_its_curve(tmp_path: Path) -> None:
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card()))
    found = card_speed(file, 20)
    assert (found.base_s, found.token_s, found.token2_s) == pytest.approx((0.0125, 0.0015, 2e-8))
    assert found.source == "audit of tiny"
    own = card()
    clients = {"probe": "clients", "metric": "tokens_per_s_1", "value": 25.0, "verdict": "note", "detail": ""}
    file.write_text(json.dumps(own | {"rows": [*own["rows"], clients]}))
    assert card_speed(file).step_s == pytest.approx(0.04)
    for document, says in (
        ({"rows": []}, "has no curve of cold prompts"),
        ([], "is no audit card"),
        (card(detail="3 ms + 1 ms a word"), "has no curve of cold prompts in tokens"),
    ):
        file.write_text(json.dumps(document))
        with pytest.raises(AdviceError, match=says):
            card_speed(file, 20)
    file.write_text(json.dumps(card()))
    with pytest.raises(AdviceError, match="says nothing about decoding: write --decode 20"):
        card_speed(file)


# -- designs and the choice -------------------------------------------------------------------------------------------
def test_budgets_go_into_the_settings() -> None:
    need = Need(agents=4, longest=9000, memory=100_000_000, ssd=3_000_000_000)
    made = {str(one.candidate): one for one in designs(need, by_bytes())}
    tiered = next(one for name, one in made.items() if name.startswith("tiered"))
    assert tiered.policy.tiers.ssd == "3GB"  # type: ignore[union-attr]
    live = tiered.live_memory or 0
    assert live + int(tiered.policy.tiers.ram.removesuffix("MB")) * 10**6 == need.memory  # type: ignore[union-attr]
    assert "ollama:context=12288" in made
    assert all(config.context is None or config.context > 9000 for one in made.values() if (config := one.config))
    host = next(one for name, one in made.items() if name.startswith("llama.cpp"))
    assert "cache_ram=63MB" in str(host.candidate)


def test_lossy_designs_and_ssd_only_where_they_are_allowed() -> None:
    need = Need(agents=4, longest=900, memory=10**8, ssd=0)
    lossless = designs(need, by_bytes())
    assert lossless and not any(one.is_lossy or one.uses_ssd for one in lossless)
    assert any(one.is_lossy for one in designs(need, by_bytes(), lossy=True))
    with pytest.raises(AdviceError, match="write --memory 2GB, or --lossy"):
        designs(Need(1, 10**6, 10**8, 0), by_bytes())


def test_of_designs_that_tie_the_simplest_is_chosen() -> None:
    own = Description(agents=1, sessions=2, turns=3, system_tokens=300).workload()
    need = Need(1, own.longest, 10**8, 10**9)
    found = rank(own, designs(need, by_bytes()), need, given_speed(500, 20), by_bytes())
    assert found.choice is not None
    assert found.choice.name == "ollama:variant=article"
    assert len(found.ties) > 5
    assert found.judged[0].wait_s <= found.choice.wait_s
    assert not [one for one in found.judged if one.name == "full" and one in found.ties]


def test_memory_that_a_design_would_exceed_rules_it_out() -> None:
    own = Description(agents=12, turns=2, system_tokens=100).workload()
    need = Need(12, own.longest, 3 * own.longest * 1000, 0)
    found = rank(own, designs(need, by_bytes()), need, given_speed(500, 20), by_bytes())
    out = {one.name: one.why_not for one in found.judged if not one.fits}
    assert "times the memory" in out["mlx-lm"]
    assert found.choice is not None
    assert found.choice.memory_bytes <= 1.02 * need.memory


def test_advice_says_the_same_as_text_rows_page_and_chart() -> None:
    found = kvlab.advise(agents=2, turns=3, restarts=1, memory="400MB", ssd="2GB", prefill=500.0, decode=20.0)
    assert found.policy.startswith("tiered:ram=")
    assert found.policy.endswith(",ssd=2GB")
    assert (
        found.serve == f"kvlab serve --policy {found.policy} --live-memory {found.choice.design.live_memory // 10**6}MB"
    )
    assert any(one.condition == "no restarts" for one in found.changes)
    assert any(one.differs and one.condition == "no SSD" for one in found.changes)
    chosen = [row for row in found.rows if row["chosen"]]
    assert {row["policy"] for row in chosen} == {found.policy}
    assert {"ttft_total_ms", "recomputed_tokens", "ttft_after_restart_ms", "agents_that_fit"} <= {
        row["metric"] for row in chosen
    }
    for text in (str(found), found._repr_html_()):
        assert found.serve in text
        assert all(value in text for _, value in found.numbers)
    chart = found.chart()
    assert isinstance(chart, alt.TopLevelMixin)
    assert chart.to_dict() != on_dark(chart.to_dict())


# -- the command ------------------------------------------------------------------------------------------------------
def test_command_prints_tidy_rows(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["advise", "--agents", "2", "--turns", "2", "--prefill", "500", "--decode", "20", "--json"]
    assert main(line) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "advise"
    assert {"policy", "workload", "metric", "value", "unit"} <= set(document["rows"][0])
    advice = document["provenance"]["advice"]
    assert advice["serve"].startswith("kvlab serve ")
    assert len(advice["decided_by"]) == 3
    assert sum(row["chosen"] for row in document["rows"]) == len(
        {row["metric"] for row in document["rows"] if row["chosen"]}
    )


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--help"]) == 0
    assert "kvlab advise --agents 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ([], "how quick is the machine? write --measure"),
        (["--prefill", "500", "--decode", "20", "--measure"], "exclude each other: keep one"),
        (["--prefill", "-1", "--decode", "20"], "speeds must be more than 0"),
        (["--prefill", "500", "--decode", "20", "--memory", "1KB"], "write --memory"),
        (["--prefill", "500", "--decode", "20", "--memory", "much"], "cannot read the size 'much'"),
        (["--prefill", "500", "--decode", "20", "--agents", "0"], "agents=0 is too small: write 1 or more"),
        (["--n", "2"], "write --agents"),
        (["--workload", "nonsense", "--prefill", "500", "--decode", "20"], "unknown workload 'nonsense'"),
        (["--workload", "agent", "--agents", "2", "--prefill", "500", "--decode", "20"], "agents describes a workload"),
        (["--card", "missing.json"], "missing.json cannot be read"),
    ],
)
def test_wrong_input_ends_with_one_line(line: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *line]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_workload_of_kvlab_is_read_under_the_models_template(bundled: Any) -> None:
    found = kvlab.advise("agent", turns=3, n=2, model=bundled, **ASKED)
    assert found.workload.startswith("2 conversations of agent, ")
    assert found.choice.fits


def test_a_served_line_is_read_as_the_design_that_was_chosen() -> None:
    """The text of each candidate is the candidate: what is served is what was simulated."""
    need = Need(4, 9000, 10**8, 10**9)
    for one in designs(need, by_bytes(), lossy=True):
        text = str(one.candidate)
        read = System.parse(text) if isinstance(one.candidate, System) else Policy.parse(text)
        assert policy_of(read) == one.policy
        assert config_of(read) == config_of(one.candidate)
