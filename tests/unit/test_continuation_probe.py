"""The probe of continued texts finds a server that dies of an exact hit, also where its texts lose a space."""

from __future__ import annotations

import json

import httpx
import pytest

from kvlab.audit import prepare
from kvlab.audit.client import AuditClient
from kvlab.audit.finding import Finding
from kvlab.audit.probes.continuation import LENGTHS, Continuation


class Spaceless(httpx.BaseTransport):
    """Tokens are words; a completion comes without the space before it, as some servers' do.

    Each token of the first ``glues`` completions is written as a text of three words, so that it is read as more.
    """

    def __init__(self, *, dies: bool, glues: int = 0, counts: bool = True) -> None:
        self.dies, self.glues, self.counts = dies, glues, counts
        self.alive = True
        self.held: list[list[str]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.alive:
            raise httpx.ConnectError("connection refused", request=request)
        body = json.loads(request.content or b"{}")
        if "max_tokens" not in body:
            return httpx.Response(200, json={"data": [{"id": "fake"}]})
        tokens = str(body.get("prompt") or body.get("messages")).split()
        if self.dies and tokens in self.held:
            self.alive = False
            raise httpx.RemoteProtocolError("server disconnected", request=request)
        said = [f"word{len(tokens) + at}" for at in range(body["max_tokens"])]
        if self.glues:
            self.glues, said = self.glues - 1, ["<glued>"] * len(said)
        self.held.append([*tokens, *said])
        text = " ".join(said).replace(" <glued>", "<glued>").replace("<glued>", "a b c")
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(said)} if self.counts else None
        choice = {"index": 0, "text": text, "delta": {"content": text}, "finish_reason": "length"}
        lines = [json.dumps({"choices": [choice], "usage": usage}), "[DONE]"]
        content = "".join(f"data: {line}\n\n" for line in lines)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)


def findings(server: Spaceless) -> dict[str, Finding]:
    with AuditClient("http://fake", "fake", transport=server) as client:
        client_lab = prepare(client, salt="test", tokens=200)
        return {finding.metric: finding for finding in Continuation().run(client_lab)}


@pytest.mark.parametrize("glues", [0, 2])
def test_a_server_whose_texts_lose_a_space_is_found_to_die(glues):
    found = findings(Spaceless(dies=True, glues=glues))
    assert (found["continued"].verdict, found["alive"].verdict) == ("bad", "bad")


def test_a_server_whose_texts_lose_a_space_goes_on_well():
    found = findings(Spaceless(dies=False))
    assert (found["continued"].verdict, found["continued"].value, found["alive"].verdict) == ("good", 1, "good")


def test_a_server_that_counts_no_tokens_is_tried_all_the_same():
    found = findings(Spaceless(dies=False, counts=False))
    assert found["continued"].value is not None and found["alive"].verdict == "good"


def test_texts_that_are_never_read_back_as_they_were_written_are_named():
    found = findings(Spaceless(dies=True, glues=1000))
    assert found["continued"].verdict == "note"
    assert found["continued"].value is None
    assert f"none of {len(LENGTHS)} completions" in found["continued"].detail
