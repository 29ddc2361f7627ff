"""The audit: every probe tells cache designs apart, whatever a server reports, and wrong input is one clear line."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvlab.audit import AuditClient, AuditError, ColdCurve, Finding, Lab, choose_probes, prepare, run_audit
from kvlab.audit.material import Material, shared_part, user
from kvlab.audit.page import card_page
from kvlab.audit.report_card import (
    card_name,
    card_rows,
    compare_cards,
    duration_text,
    load_card,
    names_of_two,
    server_facts,
)
from kvlab.cli.main import main
from tests.fake_openai import REQUEST_S, SQUARED_TOKEN_S, TOKEN_S, Clock, Design, FakeServer

CACHE_PROBES = (
    "repeat",
    "append",
    "divergence",
    "shared_system",
    "alternating",
    "rotation",
    "edited_history",
    "first_line",
    "tool_order",
    "thinking",
    "inference",
)
UNEVEN = (1.0, 1.03, 0.98, 1.01, 0.97)


def lab_of(design: Design, salt: str = "salt", **about: Any) -> Lab:
    clock = Clock()
    transport = httpx.MockTransport(FakeServer(design, clock, **about))
    return prepare(AuditClient("http://fake", clock=clock, transport=transport), salt=salt, tokens=400)


@functools.cache
def audit(design: Design, salt: str = "salt", probes: Sequence[str] = CACHE_PROBES) -> dict[tuple[str, str], Finding]:
    found = run_audit(lab_of(design, salt), choose_probes(probes), progress=False)
    return {(finding.probe, finding.metric): finding for finding in found}


EXACT = Design()
IN_BLOCKS = Design(block=64)
NOTHING = Design(capacity=0)
FIFO = Design(capacity=10)
ONE_SLOT = Design(capacity=1, steals=True)
LYING = Design(reports="lie")


# -- designs ----------------------------------------------------------------------------------------------------------


def test_a_cache_exact_to_the_token_has_no_bad_finding() -> None:
    found = audit(EXACT)
    assert [key for key, finding in found.items() if finding.verdict in ("bad", "unknown")] == []
    assert found["repeat", "cached_tokens"].value == found["repeat", "prompt_tokens"].value - 1  # type: ignore[operator]
    assert found["divergence", "block_tokens"].value == 1
    assert found["rotation", "conversations_held"].value == 16


def test_blocks_are_seen_with_their_size() -> None:
    found = audit(IN_BLOCKS)
    assert found["divergence", "block_tokens"].value == 64
    assert "63" in found["divergence", "block_tokens"].means
    assert found["repeat", "cached_tokens"].value % 64 == 0  # type: ignore[operator]


@pytest.mark.parametrize("reports", ["true", "nothing"])
def test_a_server_without_a_cache_fails_every_probe_that_a_cache_could_pass(reports: str) -> None:
    found = audit(Design(capacity=0, reports=reports))
    bad = {probe for (probe, _), finding in found.items() if finding.verdict == "bad"}
    assert bad == {
        "repeat", "append", "divergence", "shared_system", "alternating", "rotation", "edited_history",
    }  # fmt: skip
    assert found["rotation", "conversations_held"].value == 0


def test_the_number_of_conversations_held_is_found_and_that_one_more_loses_all() -> None:
    found = audit(FIFO)
    assert found["rotation", "conversations_held"].value == 10
    assert found["rotation", "conversations_held"].verdict == "note"
    assert found["rotation", "held_of_one_more"].value == 0
    assert audit(ONE_SLOT)["rotation", "conversations_held"].verdict == "bad"


def test_alternating_agents_throw_each_other_out_of_one_slot() -> None:
    assert audit(ONE_SLOT)["alternating", "first_agent_cached_tokens"].verdict == "bad"
    assert audit(FIFO)["alternating", "first_agent_cached_tokens"].verdict == "good"


def test_a_conversation_whose_cache_another_one_took_is_seen() -> None:
    found = audit(ONE_SLOT)
    assert found["shared_system", "cached_tokens"].verdict == "good"
    assert found["shared_system", "first_user_cached_tokens"].verdict == "note"
    assert audit(EXACT)["shared_system", "first_user_cached_tokens"].verdict == "good"


def test_whether_the_reply_is_reused_is_seen() -> None:
    reused, computed = (audit(Design(keeps_reply=kept))["append", "reply_cached_tokens"] for kept in (True, False))
    assert (reused.verdict, reused.value) == ("good", 23)
    assert (computed.verdict, computed.value) == ("note", 0)


def test_a_reply_that_is_too_short_gives_no_verdict_on_its_reuse() -> None:
    found = audit(Design(reply_words=3))["append", "reply_cached_tokens"]
    assert (found.verdict, found.value) == ("unknown", None)
    assert audit(Design(reply_words=8))["append", "reply_cached_tokens"].verdict == "good"


def test_what_follows_an_edit_is_seen_where_the_cache_moves_it() -> None:
    moved = audit(Design(keeps_after_edit=True))
    assert moved["edited_history", "cached_after_the_edit"].value > 100  # type: ignore[operator]
    assert ("edited_history", "cached_after_the_edit") not in audit(EXACT)


@pytest.mark.parametrize(
    ("metric", "design"),
    [
        (("first_line", "billing_cached_tokens"), Design(drops_billing=True)),
        (("tool_order", "cached_tokens"), Design(sorts_tools=True)),
        (("thinking", "sent_back_cached_tokens"), Design(writes_thinking="always")),
    ],
)
def test_what_a_server_does_for_agents_that_change_their_prompts_is_seen(
    metric: tuple[str, str], design: Design
) -> None:
    assert audit(design)[metric].verdict == "good"
    assert audit(EXACT)[metric].verdict == "note"


def test_thinking_in_the_prompt_is_counted() -> None:
    assert audit(Design(writes_thinking="always"))["thinking", "thinking_tokens"].value == 80
    assert audit(Design(writes_thinking="never"))["thinking", "thinking_tokens"].value == 0


def test_a_template_without_tools_is_no_finding_about_their_order() -> None:
    found = audit(Design(writes_tools=False))["tool_order", "cached_tokens"]
    assert found.verdict == "unknown"
    assert "writes no tools" in found.detail


def test_a_template_that_takes_no_tool_messages_gets_plain_ones() -> None:
    found = audit(Design(takes_tool_messages=False))
    assert found["edited_history", "cached_tokens"].verdict == "good"
    assert found["thinking", "left_out_cached_tokens"].verdict == "good"


# -- what is reported, and what is inferred ---------------------------------------------------------------------------


def test_inferred_tokens_lie_within_a_tenth_of_those_reported_where_ttft_is_a_little_uneven() -> None:
    found = audit(Design(noise=UNEVEN))["inference", "mean_difference"]
    assert found.verdict == "good"
    assert 0 < found.value < 0.1  # type: ignore[operator]


def test_false_claims_of_cached_tokens_are_bad() -> None:
    found = audit(LYING)["inference", "mean_difference"]
    assert found.verdict == "bad"
    assert "claims" in found.means


def test_verdicts_are_the_same_where_nothing_is_reported() -> None:
    for design, hidden in (
        (EXACT, Design(reports="nothing", noise=UNEVEN)),
        (FIFO, Design(reports="nothing", capacity=10)),
    ):
        told, inferred = audit(design), audit(hidden)
        for key, finding in inferred.items():
            if key[0] != "curve" and key[1].endswith("cached_tokens") and finding.verdict != "unknown":
                assert (key, finding.verdict) == (key, told[key].verdict)
        assert inferred["rotation", "conversations_held"].value == told["rotation", "conversations_held"].value
        assert "inferred from the TTFT, ±" in inferred["repeat", "cached_tokens"].detail
        assert "inferred" in inferred["curve", "reports_cached_tokens"].means


def test_ttft_that_says_nothing_gives_no_verdict() -> None:
    found = audit(Design(reports="nothing", capacity=0, noise=(1.0, 3.0, 0.4, 2.1, 0.7, 5.0)))
    assert found["repeat", "cached_tokens"].verdict == "unknown"
    assert found["rotation", "conversations_held"].verdict == "unknown"
    assert "idle" in found["curve", "cold_ttft_spread"].means


def test_no_field_stands_for_0_where_the_server_reports_other_numbers() -> None:
    found = audit(Design(reports="silence_at_zero", capacity=1))
    assert found["repeat", "cached_tokens"].verdict == "good"
    assert found["alternating", "first_agent_cached_tokens"].verdict == "bad"
    assert "reported" in found["alternating", "first_agent_cached_tokens"].detail


def test_sizes_are_words_where_the_server_counts_no_tokens() -> None:
    found = audit(Design(counts=False, noise=UNEVEN))
    assert found["repeat", "cached_tokens"].unit == "words"
    assert found["repeat", "cached_tokens"].verdict == "good"
    assert "words" in found["curve", "counts_tokens"].means


# -- the curve --------------------------------------------------------------------------------------------------------


def cold(tokens: int) -> float:
    return REQUEST_S + TOKEN_S * tokens + SQUARED_TOKEN_S * tokens**2


def test_the_curve_of_a_known_server_is_found_despite_one_slow_answer() -> None:
    samples = [(n, cold(n)) for n in (100, 400, 1000, 4000) for _ in range(3)]
    samples[4] = (400, 9.0)
    curve = ColdCurve.fit(samples)
    assert (curve.base, curve.linear, curve.quadratic) == pytest.approx((REQUEST_S, TOKEN_S, SQUARED_TOKEN_S))
    assert curve.spread == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cached", [0, 1, 700, 1999])
def test_cached_tokens_follow_from_ttft_with_attention_to_cached_ones_paid(cached: int) -> None:
    curve = ColdCurve.fit([(n, cold(n)) for n in (100, 400, 1000, 4000)])
    warm = cold(2000) - (cold(cached) - REQUEST_S)
    assert curve.cached(2000, warm).tokens == pytest.approx(cached, abs=1e-3)


def test_the_stated_error_covers_the_noise() -> None:
    samples = [(n, cold(n) * factor) for n in (100, 400, 1000, 4000) for factor in (0.95, 1.0, 1.06)]
    curve = ColdCurve.fit(samples)
    for factor in (0.95, 1.06):
        found = curve.cached(2000, factor * (cold(2000) - cold(1000) + REQUEST_S))
        assert abs(found.tokens - 1000) < 2 * found.error < 300


def test_a_ttft_beyond_the_curve_is_none_or_all_of_the_prompt() -> None:
    curve = ColdCurve.fit([(n, cold(n)) for n in (100, 400, 1000)])
    assert curve.cached(500, 10.0).tokens == 0
    assert curve.cached(500, 0.0).tokens == 500


def test_a_curve_needs_three_lengths() -> None:
    with pytest.raises(ValueError, match="3 lengths, not of 2"):
        ColdCurve.fit([(1, 1.0), (2, 2.0), (2, 2.1)])


# -- material ---------------------------------------------------------------------------------------------------------


def test_texts_are_the_same_for_one_salt_and_label_and_differ_from_the_first_word_for_another() -> None:
    one = Material("a").text("label", 200)
    assert one == Material("a").text("label", 200)
    firsts = {Material(salt).text(label, 200).split()[0] for salt in "ab" for label in ("x", "y")}
    assert len(firsts) == 4
    assert len(Material("a", tokens_per_word=2.0).text("label", 200).split()) == 100


def test_the_shared_part_ends_where_prompts_differ() -> None:
    shared = shared_part([user("a" * 500 + "b" * 500)], [user("a" * 500 + "c" * 90)])
    assert shared == pytest.approx(0.5, abs=0.02)
    tools = [{"function": {"name": "one"}}], [{"function": {"name": "two"}}]
    assert shared_part([user("a" * 500)], [user("a" * 500)], *tools) < 0.1


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_probe_that_fails_is_unknown_and_the_next_one_runs() -> None:
    lab = lab_of(EXACT)
    probes = choose_probes(["repeat", "append"])
    real = lab.ask

    def ask(messages: Any, **options: Any) -> Any:
        if "max_tokens" in options and options["max_tokens"] == 1 and messages[0]["content"] == broken:
            raise AuditError("the server gave no answer: status 500: out of memory")
        return real(messages, **options)

    broken = lab.text("repeat/system", 0.75)
    lab.ask = ask  # type: ignore[method-assign]
    found = {(finding.probe, finding.metric): finding for finding in run_audit(lab, probes, progress=False)}
    assert found["repeat", "ran"].verdict == "unknown"
    assert "out of memory" in found["repeat", "ran"].detail
    assert found["append", "cached_tokens"].verdict == "good"


def test_each_probe_is_timed_and_none_begins_after_the_limit() -> None:
    lab = lab_of(EXACT)
    found = run_audit(lab, choose_probes(["repeat", "append", "rotation"]), progress=False, limit_s=2.0)
    late = [finding.probe for finding in found if finding.detail == "not run: 2 s were over"]
    assert late and late[-1] == "rotation"
    assert set(lab.seconds) == {"curve", "repeat", "append", "rotation"}
    assert lab.seconds["curve"] > 2.0 > lab.seconds[late[-1]]
    card = {"provenance": server_facts(lab.client, lab)}
    assert duration_text(card).startswith(f"The audit took {sum(lab.seconds.values()):.0f} s: curve ")


@pytest.mark.parametrize(
    ("about", "arguments", "says"),
    [
        ({"key": "secret"}, {}, "wants a key, or another one (a key, please): give it with --api-key"),
        ({"models": ("one", "two")}, {}, "several models; choose one with --model: one, two"),
        ({}, {"model": "other"}, "has no model 'other'; choose one with --model: fake"),
        ({"error": "out of memory"}, {}, "status 500: out of memory"),
    ],
)
def test_a_server_that_does_not_answer_is_one_clear_error(
    about: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    clock = Clock()
    server = FakeServer(EXACT, clock, **about)
    client = AuditClient("http://fake", clock=clock, transport=httpx.MockTransport(server), **arguments)
    with pytest.raises(AuditError) as error:
        prepare(client, salt="salt")
    assert says in str(error.value)


def test_a_page_that_is_no_server_is_one_clear_error() -> None:
    client = AuditClient("http://fake/other", transport=httpx.MockTransport(FakeServer(EXACT, Clock())))
    with pytest.raises(AuditError, match="write the address of an OpenAI-compatible server"):
        prepare(client, salt="salt")


def test_a_key_is_sent() -> None:
    clock = Clock()
    transport = httpx.MockTransport(FakeServer(EXACT, clock, key="secret"))
    lab = prepare(AuditClient("http://fake/v1/", api_key="secret", clock=clock, transport=transport), salt="salt")
    assert lab.client.model == "fake"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "write either the server's URL"),
        (["http://127.0.0.1:8080", "--policy", "tiered"], "write either the server's URL"),
        (["--system", "omlx", "--policy", "tiered"], "or --system and the name of a system"),
        (["http://127.0.0.1:9", "http://127.0.0.1:8"], "kvlab audit http://127.0.0.1:9 --against card.json"),
        (["http://127.0.0.1:9", "--against", "http://127.0.0.1:8"], "--against takes a saved card"),
        (["http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["http://"], "is no server's address"),
        (["http://:8080"], "names no server"),
        (["127.0.0.1:8080"], "write it with http://"),
        (["http://127.0.0.1:9", "--only", "nope"], "no probe 'nope'; there are"),
        (["http://127.0.0.1:9", "--against", "/nonesuch.json"], "cannot be read"),
        (["http://127.0.0.1:9", "--tokens", "1"], "'--tokens'"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


# -- cards ------------------------------------------------------------------------------------------------------------


def card(design: Design) -> dict[str, Any]:
    lab = lab_of(design)
    rows = [finding.row() for finding in audit(design).values()]
    return {"kvlab": "0", "command": "audit", "provenance": server_facts(lab.client, lab), "rows": rows}


def test_a_card_names_its_server_without_a_host_or_a_folder() -> None:
    lab = lab_of(EXACT)
    lab.client.model = "/home/somebody/models/tiny"
    facts = server_facts(lab.client, lab)
    assert facts["served_model"] == "tiny"
    assert "fake" not in json.dumps(facts)


def test_a_card_shows_what_has_a_meaning_and_every_verdict_has_one() -> None:
    for design in (EXACT, NOTHING, ONE_SLOT, LYING):
        made = card(design)
        assert all(row["means"] for row in made["rows"] if row["verdict"] in ("good", "bad"))
        shown = card_rows(made)
        assert 0 < len(shown) < len(made["rows"])
        assert all(row["what it means for an agent"] for row in shown)


def test_two_cards_differ_in_counts_verdicts_and_missing_rows_but_not_in_times() -> None:
    one, other = card(EXACT)["rows"], card(IN_BLOCKS)["rows"]
    slower = [{**row, "value": row["value"] * 1.5} if row["unit"] == "ms" else row for row in one]
    assert not any(row["differs"] for row in compare_cards(one, slower))
    differing = {(row["probe"], row["metric"]) for row in compare_cards(one, other) if row["differs"]}
    assert ("divergence", "block_tokens") in differing
    assert ("repeat", "prompt_tokens") not in differing
    fewer = [row for row in one if row["probe"] != "repeat"]
    absent = [row for row in compare_cards(fewer, one) if row["differs"]]
    assert {row["probe"] for row in absent} == {"repeat"}
    assert all(row["verdict"] == "absent" for row in absent)


def test_saved_cards_are_shown_side_by_side_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, design in (("one", EXACT), ("other", IN_BLOCKS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(card(design)))
    one, other = str(tmp_path / "one.json"), str(tmp_path / "other.json")
    assert main(["audit", one, "--against", other, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    block = next(row for row in rows if row["metric"] == "block_tokens")
    assert (block["value"], block["against"], block["differs"]) == (1, 64, True)
    assert main(["audit", one, "--against", other]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("≠") and "block_tokens" in line for line in lines)
    assert main(["audit", one]) == 0
    assert "0 bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", "no json", "\xff", '{"command": "compare", "rows": []}', '{"command": "audit", "rows": [1]}',
        '{"command": "audit", "rows": [{"probe": "a", "metric": "b", "value": 1, "verdict": "splendid"}]}',
        '{"command": "audit", "rows": [{"probe": "a", "metric": "b", "value": "1", "verdict": "good"}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_card_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(AuditError, match="is no report card"):
        load_card(tmp_path / "no.json")


def test_a_card_with_fewer_columns_is_read_and_compared(tmp_path: Path) -> None:
    rows = [{"probe": "repeat", "metric": "cached_tokens", "value": 5, "verdict": "good", "later": True}]
    (tmp_path / "old.json").write_text(json.dumps({"kvlab": "0.0.1", "command": "audit", "rows": rows}))
    old = load_card(tmp_path / "old.json")
    made = {**card(EXACT), "rows": compare_cards(card(EXACT)["rows"], old["rows"])}
    made["provenance"]["against"] = old["provenance"]
    assert "against_means" in made["rows"][0] and "the other" in card_page(made)
    assert card_rows(old) and card_page(old)


def test_two_cards_are_called_by_what_tells_them_apart() -> None:
    one, other = {"policy": "llama.cpp", "served_model": "tiny"}, {"policy": "mlx-lm", "served_model": "tiny"}
    assert names_of_two({**one, "against": other}) == ("llama.cpp", "mlx-lm")
    assert names_of_two({**one, "against": one}) == ("this card", "the other")
    assert names_of_two({"server": "uvicorn", "against": {"server": "llama.cpp"}}) == ("uvicorn", "llama.cpp")
    assert card_name(one) == "llama.cpp · tiny"


def test_a_page_of_two_cards_says_what_both_mean_where_they_judge_otherwise() -> None:
    one, other = card(NOTHING), card(EXACT)
    facts = {**one["provenance"], "policy": "<none>", "against": {**other["provenance"], "policy": "tiered"}}
    page = card_page({**one, "rows": compare_cards(one["rows"], other["rows"]), "provenance": facts})
    assert "Audit of &lt;none&gt; beside tiered" in page and "<none>" not in page
    repeat = next(row for row in other["rows"] if row["probe"] == "repeat" and row["means"])
    assert f"tiered: {repeat['means']}" in page


def test_the_page_tells_verdicts_by_sign_and_word_and_escapes_what_a_server_says() -> None:
    made = card(NOTHING)
    made["provenance"]["served_model"] = "<script>alert(1)</script>"
    page = card_page(made)
    assert "<script>" not in page
    assert "✗ bad" in page
    assert "light-dark(" in page
    assert "≠" in card_page({**made, "rows": compare_cards(made["rows"], card(EXACT)["rows"])})
