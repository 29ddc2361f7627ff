"""Streams and their ends: what an agent's client library must be able to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvlab.audit.client import Reply
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.material import user
from kvlab.audit.probe import Lab, Probe
from kvlab.audit.wire import WireStream, read_wire

ANSWER_TOKENS = 24
"""Of the answers that are read."""

FEW_TOKENS = 5
"""Asked for where max_tokens must be honoured."""

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")

REPLACEMENT = "\ufffd"
"""What a decoder writes for half of a character."""

CHARACTERS = "🙂 héllo 你好 🙂 naïve 世界 🚀 señor 你好 🙂 "
"""Text with characters of two to four bytes, for the model to go on with."""

READS = "An agent's client library gets here what it expects."
EVENTS = "A client that reads server-sent events to the letter stops at such a line."
DONE = "A client that waits for [DONE] hangs until the connection closes, or reports a broken stream."
ROLE = "A client that joins all deltas expects one role: none or several give messages of a wrong role."
FINISH = "An agent cannot tell a finished answer from one that was cut."
USAGE = "An agent that budgets its context does not learn what a streamed request has cost."
AGREE = "An agent gets another answer when it streams than when it does not."
MAX = "An agent gets more tokens than it has asked and reckoned for."
STOP = "An agent that ends an answer at a marker gets the marker, or what comes behind it."
BYTES = "Characters that are split over two pieces of a stream reach an agent broken."


class WellFormed(Probe):
    """Reads streamed answers line by line, and compares them with whole ones."""

    name, about, order = "well_formed", "streams, stop strings, max_tokens and characters are as promised", 100

    def run(self, lab: Lab) -> Iterator[Finding]:
        messages = [user("Write two sentences about the sea. " + lab.material.text("well_formed", 24))]
        body = {"messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        wire = read_wire(lab.client, "/chat/completions", body)
        if wire.error:
            yield Finding(self.name, "stream", 0, "", "bad", wire.error, "An agent that streams gets no answer.")
            return
        yield from stream_findings(self.name, wire)
        whole = lab.ask(messages, max_tokens=ANSWER_TOKENS, stream=False)
        yield _agreement(self.name, wire, whole)
        yield _few_tokens(self.name, lab.ask(messages, max_tokens=FEW_TOKENS))
        yield from self._stops(lab, messages, whole.text)
        yield self._characters(lab)

    def _stops(self, lab: Lab, messages: Sequence[Mapping[str, Any]], text: str) -> Iterator[Finding]:
        """Ask again with words from the middle of the known answer as a stop string, streamed and not."""
        stop = _middle(text)
        if not stop:
            why = f"the answer {text!r} is too short to be stopped in its middle"
            yield Finding(self.name, "stop", None, "", "unknown", why)
            return
        wanted = text[: text.index(stop)]
        for metric, stream in (("stop", False), ("stop_in_stream", True)):
            reply = lab.ask(list(map(dict, messages)), max_tokens=ANSWER_TOKENS, stream=stream, stop=[stop])
            why = f"stop {stop!r}: {reply.text!r}, finish_reason {reply.finish_reason}"
            yield _finding(self.name, metric, reply.text.rstrip() == wanted.rstrip(), why, STOP)

    def _characters(self, lab: Lab) -> Finding:
        """Let the model write characters of several bytes, streamed and whole."""
        how, replies = "/v1/completions", []
        for stream in (True, False):
            replies.append(lab.client.complete(3 * CHARACTERS, max_tokens=ANSWER_TOKENS, stream=stream))
        if not all(reply.is_complete for reply in replies):
            how, asked = "/v1/chat/completions", [user(f"Repeat this text three times: {CHARACTERS}")]
            replies = [lab.ask(asked, max_tokens=ANSWER_TOKENS, stream=stream) for stream in (True, False)]
        return characters_finding(self.name, how, *replies)


def _finding(probe: str, metric: str, good: bool, why: str, means: str) -> Finding:
    return Finding(probe, metric, float(good), "", "good" if good else "bad", why, READS if good else means)


def stream_findings(probe: str, wire: WireStream) -> Iterator[Finding]:
    """Judge the form of one streamed answer."""
    lines = list(wire.bad_lines)
    if "text/event-stream" not in wire.content_type:
        lines.append(f"content-type {wire.content_type or 'missing'}")
    told = f"{len(wire.events)} events" + (f"; not well formed: {lines[0]!r}" if lines else "")
    yield _finding(probe, "events", not lines, told, EVENTS)
    yield _finding(probe, "done", wire.ended, "the last event is " + ("" if wire.ended else "not ") + "[DONE]", DONE)
    roles = [delta["role"] for delta in wire.deltas if delta.get("role")]
    one = roles[:1] == ["assistant"] and len(set(roles)) == 1
    verdict: Verdict = "good" if one and len(roles) == 1 else "note" if one else "bad"
    why = f"{len(roles)} of {len(wire.deltas)} deltas have a role"
    yield Finding(probe, "roles", len(roles), "deltas", verdict, why, READS if verdict == "good" else ROLE)
    reasons = [choice["finish_reason"] for choice in wire.choices if choice.get("finish_reason")]
    last = bool(wire.choices) and bool(wire.choices[-1].get("finish_reason"))
    good = len(reasons) == 1 and reasons[0] in FINISH_REASONS and last
    yield _finding(probe, "finish_reason", good, f"finish reasons: {reasons or 'none'}", FINISH)
    yield _usage_finding(probe, wire)


def _usage_finding(probe: str, wire: WireStream) -> Finding:
    """Judge the tokens that the stream reports at its end, as ``include_usage`` asks for."""
    told = [event["usage"] for event in wire.events if event.get("usage")]
    if not told:
        return _finding(probe, "usage", False, "no usage in the stream", USAGE)
    counts = [told[-1].get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    good = all(isinstance(count, int) for count in counts) and counts[0] + counts[1] == counts[2]
    return _finding(probe, "usage", good, f"prompt, completion and total tokens: {counts}", USAGE)


def _agreement(probe: str, wire: WireStream, whole: Reply) -> Finding:
    streamed = wire.text
    why = "the streamed answer equals the whole one" if streamed == whole.text else f"{streamed!r}, and {whole.text!r}"
    return _finding(probe, "stream_agrees", streamed == whole.text, why, AGREE)


def _few_tokens(probe: str, reply: Reply) -> Finding:
    """Judge whether max_tokens was honoured."""
    counted = reply.completion_tokens
    why = f"{FEW_TOKENS} asked for, {counted} counted, finish_reason {reply.finish_reason}"
    if counted is None:
        return Finding(probe, "max_tokens", None, "tokens", "unknown", why)
    good = counted <= FEW_TOKENS
    return Finding(probe, "max_tokens", counted, "tokens", "good" if good else "bad", why, READS if good else MAX)


def _middle(text: str) -> str:
    """Return a piece from the middle of a text that does not occur before; empty where there is none."""
    words = text.split()
    for word in words[len(words) // 3 :] if len(words) > 2 else ():
        if len(word) > 1 and text.index(word) > 0:
            return word
    return ""


def characters_finding(probe: str, how: str, streamed: Reply, whole: Reply) -> Finding:
    """Judge characters of several bytes. Half a character at an answer's end, where max_tokens cut it, is no fault."""
    texts = [reply.text.rstrip(REPLACEMENT) for reply in (streamed, whole)]
    broken = [REPLACEMENT in text for text in texts]
    if all(text.replace(REPLACEMENT, "").isascii() for text in texts) and broken[0] == broken[1]:
        why = f"the model wrote no whole character of several bytes: {texts[0]!r}"
        return Finding(probe, "characters", None, "", "unknown", why)
    good = broken[0] == broken[1] and texts[0] == texts[1]
    return _finding(probe, "characters", good, f"streamed {texts[0]!r}, whole {texts[1]!r} ({how})", BYTES)
