"""Servers that write the protocol in their own ways: each gives a full card, and no probe ends with an error."""

from __future__ import annotations

import functools
import json

import httpx
import pytest

from kvlab.audit import AuditClient, AuditError, Finding, Lab, all_probes, prepare, run_audit
from kvlab.audit.page import card_page
from kvlab.audit.probes.clients import COUNTS
from kvlab.audit.report_card import card_rows, server_facts
from tests.fake_chat_server import FakeChatServer
from tests.fake_styles import STYLES, VLLM, LMStudio, Ollama, Sparse, Styled, TwoRoles

NAMED = {Sparse: "fake"}
"""Models that the user must name: the server has no list."""


@functools.cache
def audited(style: type[Styled]) -> tuple[Lab, dict[tuple[str, str], Finding]]:
    transport = style()
    client = AuditClient("http://fake", NAMED.get(style), clock=transport.server.clock, transport=transport)
    lab = prepare(client, salt="styles", tokens=200)
    lab.sleep = transport.server.sleep
    found = run_audit(lab, all_probes(), progress=False)
    return lab, {(finding.probe, finding.metric): finding for finding in found}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_each_style_gives_a_full_card(style: type[Styled]) -> None:
    lab, found = audited(style)
    assert {probe for probe, _ in found} == {"curve", *(probe.name for probe in all_probes())}
    stopped = [finding for (_, metric), finding in found.items() if metric == "ran" and "not run" not in finding.detail]
    assert stopped == []
    broken = {metric for (_, metric), finding in found.items() if finding.verdict == "bad"}
    overlap = {f"at_once_{count}" for count in COUNTS}  # left to the scheduling of this machine's threads here
    assert broken - overlap <= {"usage", "done"}
    made = {"provenance": server_facts(lab.client, lab), "rows": [finding.row() for finding in found.values()]}
    assert set(made["provenance"]["probe_seconds"]) == {probe for probe, _ in found}
    assert json.loads(json.dumps(made, allow_nan=False))["rows"]
    assert card_rows(made) and "Audit of fake" in card_page(made)


def test_each_style_is_named_for_what_it_leaves_out() -> None:
    said = {
        style: {
            metric: finding.verdict for (probe, metric), finding in audited(style)[1].items() if probe == "well_formed"
        }
        for style in STYLES
    }
    assert set(said[VLLM].values()) == {"good"}
    assert (said[LMStudio]["usage"], said[LMStudio]["roles"]) == ("bad", "note")
    assert (said[Ollama]["usage"], said[Ollama]["roles"]) == ("good", "note")
    assert (said[Sparse]["usage"], said[Sparse]["done"], said[Sparse]["events"]) == ("bad", "bad", "good")
    assert (said[TwoRoles]["roles"], said[TwoRoles]["usage"]) == ("note", "good")


def test_cached_tokens_that_are_not_reported_are_inferred() -> None:
    for style in (VLLM, LMStudio, Ollama, Sparse):
        lab, found = audited(style)
        assert not lab.reports_cached
        assert found["repeat", "cached_tokens"].verdict == "good", style
    assert [audited(style)[0].unit for style in (VLLM, LMStudio, Ollama, Sparse)] == [
        "tokens",
        "words",
        "tokens",
        "words",
    ]


def test_a_server_that_wants_a_model_and_lists_none_asks_for_the_option() -> None:
    class Silent(Ollama):
        lists_models = False

    client = AuditClient("http://fake", transport=Silent())
    with pytest.raises(AuditError, match="model is required.*--model"):
        prepare(client, salt="styles")


def test_a_server_that_knows_no_stream_options_is_asked_without_them() -> None:
    class Strict(Styled):
        def check(self, body: dict[str, object]) -> str:
            return "unknown field stream_options" if "stream_options" in body else ""

    transport = Strict(FakeChatServer())
    lab = prepare(AuditClient("http://fake", clock=transport.server.clock, transport=transport), salt="styles")
    assert lab.ask([{"role": "user", "content": "Hello."}]).is_complete


def test_a_page_in_place_of_an_answer_is_one_clear_error() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, html="<!doctype html><title>Welcome</title>")

    with pytest.raises(AuditError, match="write the address of an OpenAI-compatible server"):
        prepare(AuditClient("http://fake", transport=httpx.MockTransport(page)), salt="styles")
