"""Calls of tools that an agent can carry out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvlab.audit.client import Reply
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.material import user
from kvlab.audit.probe import Lab, Probe

ANSWER_TOKENS = 96
"""Enough for a short call."""

OBEYS = "An agent that must have a call gets one."
IGNORES = "The server does not make the model call a tool when an agent requires it: the agent must ask again."
RUNS = "An agent can carry out the calls as they come."
ARGUMENTS = "An agent cannot carry out a call whose arguments are no JSON object."
NAMES = "The server hands an agent a call of a tool that it does not have."
IDS = "An agent cannot tell the results of two calls apart."
REASON = "An agent that looks at finish_reason takes the call for a finished answer, and does not carry it out."
AGREE = "An agent gets another call when it streams than when it does not."


def _tool(name: str, about: str, argument: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


TOOLS = [_tool("get_weather", "Weather of a city.", "city"), _tool("get_time", "Time in a city.", "city")]


class ToolCalls(Probe):
    """Asks for a call: as a request that only a tool can answer, and then with ``tool_choice`` required."""

    name, about, order = "tool_calls", "calls of tools parse, name offered tools, and agree with their stream", 105

    def run(self, lab: Lab) -> Iterator[Finding]:
        question = "What is the weather in Paris now? Use the tool get_weather. " + lab.material.text("tool_calls", 8)
        found = 0
        for choice in ("auto", "required"):
            streamed, whole = (
                lab.client.chat(
                    [user(question)], tools=TOOLS, tool_choice=choice, max_tokens=ANSWER_TOKENS, stream=stream
                )
                for stream in (True, False)
            )
            refused = next((reply for reply in (streamed, whole) if not reply.is_complete), None)
            if refused is not None:
                why = f"status {refused.status}: {refused.error}"
                yield Finding(self.name, f"called_{choice}", None, "calls", _refusal(refused), why, IGNORES)
                continue
            found += len(whole.tool_calls) + len(streamed.tool_calls)
            yield _called(self.name, choice, whole)
            if whole.tool_calls or streamed.tool_calls:
                yield from call_findings(self.name, choice, streamed, whole)
        if not found:
            why = "the model made no call, so there is none to look at"
            yield Finding(self.name, "calls", 0, "calls", "unknown", why)


def _refusal(reply: Reply) -> Verdict:
    return "note" if 400 <= reply.status < 500 else "bad"


def _called(probe: str, choice: str, whole: Reply) -> Finding:
    count = len(whole.tool_calls)
    why = f"tool_choice {choice}: {count} calls"
    if choice == "auto":
        return Finding(probe, "called_auto", count, "calls", "note", why)
    if not count and whole.finish_reason == "length":
        why = f"{why}; max_tokens cut the answer {whole.text[:40]!r}, which may have been one"
        return Finding(probe, "called_required", count, "calls", "unknown", why)
    return Finding(
        probe, "called_required", count, "calls", "good" if count else "note", why, OBEYS if count else IGNORES
    )


def call_findings(probe: str, choice: str, streamed: Reply, whole: Reply) -> Iterator[Finding]:
    """Judge the calls of a streamed and of a whole answer to one request."""
    cut = "length" in (streamed.finish_reason, whole.finish_reason)
    calls = [*streamed.tool_calls, *whole.tool_calls]
    bad = [call["function"]["arguments"] for call in calls if not _is_object(call["function"]["arguments"])]
    if bad and cut:
        why = f"max_tokens cut the call: {bad[0]!r}"
        yield Finding(probe, f"arguments_{choice}", None, "calls", "unknown", why)
    else:
        why = f"{len(calls) - len(bad)} of {len(calls)} parse" + (f"; not {bad[0]!r}" if bad else "")
        yield _finding(probe, f"arguments_{choice}", not bad, why, ARGUMENTS)
    names = [call["function"]["name"] for call in calls]
    offered = {tool["function"]["name"] for tool in TOOLS}
    yield _finding(probe, f"names_{choice}", set(names) <= offered, f"called: {', '.join(names)}", NAMES)
    ids = [[call.get("id") or "" for call in reply.tool_calls] for reply in (streamed, whole)]
    good = all(all(own) and len(set(own)) == len(own) for own in ids)
    yield _finding(probe, f"ids_{choice}", good, f"ids streamed {ids[0]}, whole {ids[1]}", IDS)
    reasons = [reply.finish_reason for reply in (streamed, whole) if reply.tool_calls]
    yield _finding(
        probe, f"finish_reason_{choice}", cut or set(reasons) == {"tool_calls"}, f"finish reasons: {reasons}", REASON
    )
    same = _made(streamed.tool_calls) == _made(whole.tool_calls)
    why = "the same calls" if same else f"streamed {_made(streamed.tool_calls)}, whole {_made(whole.tool_calls)}"
    yield _finding(probe, f"stream_agrees_{choice}", same, why, AGREE)


def _finding(probe: str, metric: str, good: bool, why: str, means: str) -> Finding:
    return Finding(probe, metric, float(good), "", "good" if good else "bad", why, RUNS if good else means)


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError):
        return False


def _made(calls: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Return names and arguments; those that parse as values, so that spaces do not count."""
    made = []
    for call in calls:
        text = call["function"]["arguments"]
        made.append((call["function"]["name"], json.loads(text) if _is_object(text) else text))
    return made
