"""The service probes against a fake server that misbehaves in each way: each fault is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlab.audit import AuditClient, Finding, Lab, Probe, prepare
from kvlab.audit.client import Reply
from kvlab.audit.context import context_in_error
from kvlab.audit.probes.abort import Abort
from kvlab.audit.probes.clients import Clients, most_at_once
from kvlab.audit.probes.continuation import Continuation
from kvlab.audit.probes.overflow import Overflow
from kvlab.audit.probes.restart import Kill, Restart
from kvlab.audit.probes.tool_calls import ToolCalls
from kvlab.audit.probes.truth import Truth
from kvlab.audit.probes.well_formed import WellFormed, characters_finding
from kvlab.audit.runner import fit_curve, run_audit
from tests.fake_chat_server import FakeChatServer
from tests.fake_chat_text import Faults

TOKENS = 200
CONTEXT = 2000


def make_lab(server: FakeChatServer, *, fitted: bool = True, **given: Any) -> Lab:
    """A lab whose client speaks to the fake server, on the fake server's clock."""
    client = AuditClient("http://fake", "fake", timeout_s=300.0, clock=server.clock, transport=server)
    lab = prepare(client, salt="test", tokens=TOKENS)
    lab.sleep = server.sleep
    for name, value in given.items():
        setattr(lab, name, value)
    if fitted:
        list(fit_curve(lab))
    return lab


def found(probe: Probe, lab: Lab) -> dict[str, Finding]:
    """The probe's findings by metric; each has a verdict's sentence where it is no supporting number."""
    findings = list(probe.run(lab))
    assert {finding.probe for finding in findings} == {probe.name}
    for finding in findings:
        if finding.verdict in ("good", "bad"):
            assert finding.means.endswith("."), finding
    return {finding.metric: finding for finding in findings}


def verdicts(findings: dict[str, Finding]) -> dict[str, str]:
    return {metric: finding.verdict for metric, finding in findings.items()}


def bad(findings: dict[str, Finding]) -> set[str]:
    return {metric for metric, finding in findings.items() if finding.verdict == "bad"}


# -- well formed ------------------------------------------------------------------------------------------------------


def test_well_formed_server_has_no_bad_finding() -> None:
    findings = found(WellFormed(), make_lab(FakeChatServer(), fitted=False))
    assert set(verdicts(findings).values()) == {"good"}
    assert set(findings) == {
        "events", "done", "roles", "finish_reason", "usage", "stream_agrees", "max_tokens", "stop", "stop_in_stream",
        "characters",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "metrics"),
    [
        ({"no_done": True}, ["done"]),
        ({"bad_line": True}, ["events"]),
        ({"no_finish": True}, ["finish_reason"]),
        ({"no_usage": True}, ["usage"]),
        ({"stream_differs": True}, ["stream_agrees", "characters"]),
        ({"ignores_max_tokens": True}, ["max_tokens"]),
        ({"ignores_stop": True}, ["stop", "stop_in_stream"]),
        ({"splits_characters": True}, ["characters"]),
    ],
    ids=str,
)
def test_each_fault_of_a_stream_is_found(fault: dict[str, bool], metrics: list[str]) -> None:
    findings = found(WellFormed(), make_lab(FakeChatServer(Faults(**fault)), fitted=False))
    assert set(metrics) <= bad(findings)
    assert bad(findings) <= set(metrics) | {"stream_agrees", "stop_in_stream"}


def test_a_role_in_each_delta_is_noted() -> None:
    findings = found(WellFormed(), make_lab(FakeChatServer(Faults(role_in_each_delta=True)), fitted=False))
    assert findings["roles"].verdict == "note"
    assert findings["roles"].value and findings["roles"].value > 1


def test_a_model_that_writes_ascii_tells_nothing_about_characters() -> None:
    assert characters_finding("well_formed", "", Reply(text="abc"), Reply(text="abc")).verdict == "unknown"


def test_half_a_character_at_the_end_of_both_answers_is_no_fault() -> None:
    assert characters_finding("well_formed", "", Reply(text="🙂\ufffd"), Reply(text="🙂\ufffd")).verdict == "good"


# -- tool calls -------------------------------------------------------------------------------------------------------


def test_calls_that_an_agent_can_carry_out_are_good() -> None:
    findings = found(ToolCalls(), make_lab(FakeChatServer(), fitted=False))
    assert bad(findings) == set()
    assert findings["arguments_required"].verdict == "good"
    assert findings["stream_agrees_auto"].verdict == "good"


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        ("malformed_arguments", "arguments"),
        ("arguments_as_object", "arguments"),
        ("unknown_tool", "names"),
        ("no_call_ids", "ids"),
        ("stops_after_calls", "finish_reason"),
    ],
)
def test_each_fault_of_a_call_is_found(fault: str, metric: str) -> None:
    findings = found(ToolCalls(), make_lab(FakeChatServer(Faults(**{fault: True})), fitted=False))
    assert bad(findings) == {f"{metric}_auto", f"{metric}_required"}


def test_a_model_that_calls_nothing_leaves_calls_unknown() -> None:
    findings = found(ToolCalls(), make_lab(FakeChatServer(Faults(never_calls=True)), fitted=False))
    assert verdicts(findings) == {"called_auto": "note", "called_required": "note", "calls": "unknown"}


# -- truth ------------------------------------------------------------------------------------------------------------


def test_a_server_whose_cache_is_right_and_quick_is_good() -> None:
    findings = found(Truth(), make_lab(FakeChatServer()))
    assert verdicts(findings) == {"equal_answers": "good", "logprob_distance": "note", "saved_of_claimed": "good"}
    assert findings["saved_of_claimed"].value == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("logprobs", [True, False])
def test_cached_text_that_differs_is_bad(logprobs: bool) -> None:
    server = FakeChatServer(Faults(cached_text_differs=True), logprobs=logprobs)
    assert found(Truth(), make_lab(server))["equal_answers"].verdict == "bad"


def test_a_text_that_differs_at_a_tie_is_noted() -> None:
    finding = found(Truth(), make_lab(FakeChatServer(Faults(tie=True))))["equal_answers"]
    assert finding.verdict == "note"
    assert "tie" in finding.detail


def test_a_server_that_answers_one_prompt_in_two_ways_is_not_said_to_have_a_wrong_cache() -> None:
    finding = found(Truth(), make_lab(FakeChatServer(Faults(unsteady=True))))["equal_answers"]
    assert finding.verdict == "note"
    assert finding.value is not None and finding.value < 1


def test_claimed_tokens_that_are_computed_all_the_same_are_bad() -> None:
    findings = found(Truth(), make_lab(FakeChatServer(Faults(claims_without_speed=True))))
    assert findings["saved_of_claimed"].verdict == "bad"
    assert findings["equal_answers"].verdict == "good"


def test_claims_are_unknown_where_the_server_makes_none() -> None:
    findings = found(Truth(), make_lab(FakeChatServer(reports_cached=False)))
    assert findings["saved_of_claimed"].verdict == "unknown"


# -- continuation -----------------------------------------------------------------------------------------------------


def test_a_continued_completion_goes_on_as_in_one_piece() -> None:
    findings = found(Continuation(), make_lab(FakeChatServer(), fitted=False))
    assert verdicts(findings) == {"continued": "good", "alive": "good"}


def test_a_server_that_dies_of_an_exact_hit_is_found() -> None:
    findings = found(Continuation(), make_lab(FakeChatServer(Faults(dies_after_exact_hit=True)), fitted=False))
    assert verdicts(findings) == {"continued": "bad", "alive": "bad"}


# -- abort ------------------------------------------------------------------------------------------------------------


def test_a_server_that_keeps_the_progress_of_an_aborted_prompt_is_good() -> None:
    findings = found(Abort(), make_lab(FakeChatServer()))
    assert bad(findings) == set()
    computed, cached = findings["computed_before_abort"].value, findings["cached_after_abort"].value
    assert computed and cached == pytest.approx(computed, rel=0.1)


def test_lost_progress_of_an_aborted_prompt_is_bad() -> None:
    findings = found(Abort(), make_lab(FakeChatServer(Faults(loses_aborted=True))))
    assert bad(findings) == {"cached_after_abort"}


def test_a_server_that_computes_for_a_client_that_has_left_is_found() -> None:
    findings = found(Abort(), make_lab(FakeChatServer(Faults(goes_on_after_abort=True))))
    assert bad(findings) == {"wait_behind"}


def test_an_abort_without_a_curve_is_unknown() -> None:
    assert found(Abort(), make_lab(FakeChatServer(), fitted=False))["ran"].verdict == "unknown"


# -- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slots", "verdict"), [(1000, "good"), (2, "note"), (1, "bad")])
def test_streams_side_by_side_are_told_from_streams_in_a_queue(slots: int, verdict: str) -> None:
    server = FakeChatServer(Faults(slots=slots), crowds=(1, 4), step_s=0.001)
    findings = found(Clients((1, 4)), make_lab(server))
    assert findings["at_once_4"].value == min(4, slots)
    assert findings["at_once_4"].verdict == verdict
    assert findings["tokens_per_s_1"].value and findings["tokens_per_s_4"].value
    assert findings["alive"].verdict == "good"


def test_refused_requests_are_named_with_their_status() -> None:
    server = FakeChatServer(Faults(refuses_beyond=2), crowds=(1, 4), step_s=0.001)
    findings = found(Clients((1, 4)), make_lab(server))
    refused = findings["refused_4"]
    assert refused.verdict == "note"
    assert refused.value == 2
    assert "503: too busy" in refused.detail


def test_spans_that_touch_do_not_overlap() -> None:
    assert most_at_once([(0, 1), (1, 2), (2, 3)]) == 1
    assert most_at_once([(0, 2), (1, 3), (2.5, 4)]) == 2


# -- overflow ---------------------------------------------------------------------------------------------------------


def test_a_clear_error_and_a_stop_at_the_context_are_good() -> None:
    findings = found(Overflow(), make_lab(FakeChatServer(context=CONTEXT)))
    assert verdicts(findings) == {
        "context": "note", "prompt_over_the_context": "good", "alive": "good", "answer_up_to_the_context": "good",
    }  # fmt: skip
    assert findings["context"].value == CONTEXT
    assert findings["answer_up_to_the_context"].value == CONTEXT


def test_a_context_that_is_not_listed_is_read_from_the_error() -> None:
    findings = found(Overflow(), make_lab(FakeChatServer(context=CONTEXT, lists_context=False)))
    assert findings["context"].value == CONTEXT
    assert findings["prompt_over_the_context"].verdict == "good"


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        ("cuts_prompts", "prompt_over_the_context"),
        ("vague_errors", "prompt_over_the_context"),
        ("breaks_on_long_prompts", "prompt_over_the_context"),
        ("slides", "answer_up_to_the_context"),
        ("pretends", "answer_up_to_the_context"),
    ],
)
def test_each_fault_at_the_context_is_found(fault: str, metric: str) -> None:
    findings = found(Overflow(), make_lab(FakeChatServer(Faults(**{fault: True}), context=CONTEXT)))
    assert bad(findings) == {metric}


def test_a_refusal_of_an_answer_that_does_not_fit_is_good() -> None:
    findings = found(Overflow(), make_lab(FakeChatServer(Faults(refuses_long_answers=True), context=CONTEXT)))
    assert findings["answer_up_to_the_context"].verdict == "good"
    assert findings["answer_up_to_the_context"].unit == "status"


def test_a_server_without_a_limit_is_noted() -> None:
    findings = found(Overflow(), make_lab(FakeChatServer()))
    assert findings["prompt_over_the_context"].verdict == "note"
    assert findings["answer_up_to_the_context"].verdict == "unknown"


def test_context_in_an_error_is_the_largest_number_below_the_prompt() -> None:
    told = "This model's maximum context length is 4,096 tokens. However, you requested 5120 tokens (5000 in, 120 out)"
    found_context = context_in_error(told, 5000)
    assert found_context is not None and found_context.tokens == 4096
    assert context_in_error("bad request 400", 300) is None


# -- restart ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def restarts_at(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "restart"


@pytest.mark.parametrize("probe", [Restart(), Kill()], ids=lambda probe: probe.name)
def test_kv_that_outlives_a_restart_is_good(probe: Restart, restarts_at: Path) -> None:
    server = FakeChatServer(restarts_at=restarts_at)
    lab = make_lab(server, restart=f"touch {restarts_at}", kill=f"touch {restarts_at}")
    findings = found(probe, lab)
    assert server.restarted
    assert bad(findings) == set()
    assert findings["cached_tokens"].verdict == "good"
    assert findings["same_answer"].verdict == "good"


@pytest.mark.parametrize(
    ("fault", "metric"),
    [("keeps_nothing", "cached_tokens"), ("wrong_after_restart", "same_answer"), ("never_comes_back", "back_s")],
)
def test_each_fault_of_a_restart_is_found(fault: str, metric: str, restarts_at: Path) -> None:
    server = FakeChatServer(Faults(**{fault: True}), restarts_at=restarts_at)
    assert bad(found(Restart(), make_lab(server, restart=f"touch {restarts_at}"))) == {metric}


def test_a_restart_command_that_fails_is_named_with_its_words(restarts_at: Path) -> None:
    server = FakeChatServer(Faults(never_comes_back=True), restarts_at=restarts_at)
    finding = found(Restart(), make_lab(server, restart=f"touch {restarts_at}; echo no such server; exit 3"))["back_s"]
    assert finding.verdict == "bad"
    assert finding.detail == "the command ended with status 3: no such server"


# -- a server that dies -----------------------------------------------------------------------------------------------


def test_an_audit_ends_with_a_verdict_when_a_probe_has_ended_the_server() -> None:
    server = FakeChatServer(Faults(dies_after_exact_hit=True))
    findings = run_audit(make_lab(server, fitted=False), [Continuation(), ToolCalls(), WellFormed()], progress=False)
    told = [(finding.probe, finding.metric, finding.verdict) for finding in findings if finding.probe != "curve"]
    assert told == [
        ("continuation", "continued", "bad"),
        ("continuation", "alive", "bad"),
        ("tool_calls", "ran", "unknown"),
        ("well_formed", "ran", "unknown"),
    ]
    assert "since the probe continuation" in findings[-1].detail


def test_an_audit_goes_on_after_the_users_restart(restarts_at: Path) -> None:
    server = FakeChatServer(Faults(dies_after_exact_hit=True), restarts_at=restarts_at)
    lab = make_lab(server, fitted=False, restart=f"touch {restarts_at}")
    findings = run_audit(lab, [Continuation(), ToolCalls()], progress=False)
    assert ("continuation", "restarted_s") in [(finding.probe, finding.metric) for finding in findings]
    assert "called_required" in [finding.metric for finding in findings if finding.probe == "tool_calls"]
