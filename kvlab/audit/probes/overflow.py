"""A prompt over the context, and an answer that reaches its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvlab.audit.alive import alive_finding
from kvlab.audit.client import Reply
from kvlab.audit.context import Context, context_in_error, listed_context
from kvlab.audit.finding import Finding
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe
from kvlab.counts import counted

OVER = 1.25
"""A prompt over the context, as a share of it: more than the audit's count of tokens may be wrong."""

CUT_SHARE = 0.9
"""Of the tokens sent: where the server counts fewer, it has left some out."""

LEFT_TOKENS = 48
"""Room that the prompt leaves for an answer that reaches the context's end."""

BEYOND_TOKENS = 64
"""Tokens asked for beyond that room."""

LONGEST_SHARE = 64
"""The longest prompt where no context is known, in prompts of the usual size."""

LIMIT_S = 60.0
"""The longest predicted or real time of one request."""

CLEAR = "An agent is told that its prompt is too long, and can shorten it or ask for a summary."
UNCLEAR = "An agent gets an error that does not say that the prompt is too long, so it cannot react to it."
CUT = "An agent's oldest messages, or its middle ones, are missing from the prompt, and nothing tells it so."
BEYOND = "An agent's prompt is never refused: time and memory grow with it, past what the model was trained for."
BROKEN = "A prompt that is too long ends in a failure that an agent cannot tell from a broken server."
STOPS = "An agent sees finish_reason length where the context ends, and knows that the answer is not complete."
REFUSES = "An agent must ask for no more tokens than the context has left, or its request is refused with the reason."
SLIDES = "An agent's answer goes on while the server drops the tokens that it began with: it forgets without a word."
PRETENDS = "An answer that the context's end has cut looks like a finished one."


@dataclass(frozen=True)
class _Sent:
    """A long prompt: tokens as the audit counts them, the answer, and the largest prompt that was taken before."""

    tokens: int
    reply: Reply
    taken: int = 0


class Overflow(Probe):
    """Sends a prompt that is longer than the context, and asks for an answer that is longer than the rest of it."""

    name, about, order = "overflow", "a prompt over the context, and an answer up to its end", 140

    def run(self, lab: Lab) -> Iterator[Finding]:
        known = listed_context(lab.client)
        sent = _ask(lab, round(OVER * known.tokens)) if known else _grow(lab)
        if known is None and not sent.reply.is_complete:
            known = context_in_error(sent.reply.error, sent.tokens)
        if known is not None:
            yield Finding(self.name, "context", known.tokens, "tokens", "note", known.source)
        yield _prompt_finding(self.name, sent, known)
        yield alive_finding(self.name, lab)
        yield from self._generation(lab, known)

    def _generation(self, lab: Lab, known: Context | None) -> Iterator[Finding]:
        metric = "answer_up_to_the_context"
        if known is None or not lab.counts_tokens:
            why = "the context is not known" if known is None else "the server counts no tokens"
            yield Finding(self.name, metric, None, "", "unknown", why)
            return
        if (seconds := _predicted(lab, known.tokens)) > LIMIT_S:
            filling = f"filling {counted(known.tokens, 'token')} would take about {seconds:.0f} s"
            why = f"{filling}; serve the model with less context"
            yield Finding(self.name, metric, None, "", "unknown", why)
            return
        filled = _fill(lab, known.tokens)
        yield _generation_finding(self.name, metric, filled, known.tokens)
        yield alive_finding(self.name, lab)


def _messages(lab: Lab, tokens: int) -> list[dict[str, str]]:
    question = user("Count upwards from 1, one number after the other, and never stop.")
    return [system(lab.material.text("overflow", tokens)), question]


def _ask(lab: Lab, tokens: int) -> _Sent:
    return _Sent(tokens, lab.client.chat(_messages(lab, tokens), max_tokens=1, timeout_s=LIMIT_S))


def _grow(lab: Lab) -> _Sent:
    """Double a prompt until the server refuses or cuts it, or it becomes too long for an audit."""
    tokens, taken = 4 * lab.tokens, 0
    while True:
        sent = _ask(lab, tokens)
        sent = _Sent(tokens, sent.reply, taken)
        longer = 2 * tokens
        if not sent.reply.is_complete or _is_cut(sent):
            return sent
        if longer > LONGEST_SHARE * lab.tokens or _predicted(lab, longer) > LIMIT_S:
            return sent
        tokens, taken = longer, tokens


def _predicted(lab: Lab, tokens: int) -> float:
    return lab.curve.ttft(tokens) if lab.curve is not None else 0.0


def _is_cut(sent: _Sent) -> bool:
    read_tokens = sent.reply.prompt_tokens
    return read_tokens is not None and read_tokens < CUT_SHARE * sent.tokens


def _prompt_finding(probe: str, sent: _Sent, known: Context | None) -> Finding:
    """Judge the answer to a long prompt."""
    reply, metric = sent.reply, "prompt_over_the_context"
    told = f"about {counted(sent.tokens, 'token')} sent"
    if reply.is_complete:
        read_tokens = reply.prompt_tokens
        if read_tokens is None:
            why = f"{told}, answered without a word on how many were read"
            return Finding(probe, metric, None, "tokens", "unknown", why)
        if _is_cut(sent):
            return Finding(
                probe, metric, read_tokens, "tokens", "bad", f"{told}, {read_tokens} read: cut in silence", CUT
            )
        if known is None:
            return Finding(probe, metric, read_tokens, "tokens", "note", f"{told} and answered: no limit found", BEYOND)
        return Finding(probe, metric, read_tokens, "tokens", "note", f"{told} and read, past {known.source}", BEYOND)
    if reply.status == 0 and reply.error.startswith("no answer within"):
        return Finding(probe, metric, None, "", "unknown", f"{told}; {reply.error}, and no refusal either")
    if reply.status in (0, 200) or reply.status >= 500:
        why = f"{told}; status {reply.status}: {reply.error}"
        return Finding(probe, metric, reply.status, "status", "bad", why, BROKEN)
    clear = any(word in reply.error.lower() for word in ("context", "token", "too long", "too large", "length"))
    bound = f"; {sent.taken} were taken before" if sent.taken else ""
    why = f"{told}{bound}; status {reply.status}: {reply.error}"
    return Finding(probe, metric, reply.status, "status", "good" if clear else "bad", why, CLEAR if clear else UNCLEAR)


def _fill(lab: Lab, context: int) -> Reply:
    """Fill the context but for a little room, and ask for more than that."""
    tokens = round(CUT_SHARE * (context - LEFT_TOKENS))
    first = lab.client.chat(_messages(lab, tokens), max_tokens=1, timeout_s=2 * LIMIT_S)
    if not first.is_complete or not first.prompt_tokens:
        return first
    tokens = int(tokens * (context - LEFT_TOKENS) / first.prompt_tokens)
    more = LEFT_TOKENS + BEYOND_TOKENS + context // 100  # the second prompt's size is known to about 1 %
    return lab.client.chat(_messages(lab, tokens), max_tokens=more, timeout_s=2 * LIMIT_S)


def _generation_finding(probe: str, metric: str, reply: Reply, context: int) -> Finding:
    """Judge an answer that should have reached the end of the context."""
    if not reply.is_complete:
        refused = 400 <= reply.status < 500
        why = f"status {reply.status}: {reply.error}"
        if refused:
            return Finding(probe, metric, reply.status, "status", "good", why, REFUSES)
        if reply.error.startswith("no answer within"):
            return Finding(probe, metric, None, "", "unknown", reply.error)
        return Finding(probe, metric, reply.status, "status", "bad", why, BROKEN)
    prompt, answer = reply.prompt_tokens, reply.completion_tokens
    if prompt is None or answer is None:
        return Finding(probe, metric, None, "", "unknown", "the server did not count this answer's tokens")
    why = f"{prompt} + {answer} tokens of {context}, finish_reason {reply.finish_reason}"
    total = prompt + answer
    if total > context + 1:
        return Finding(probe, metric, total, "tokens", "bad", why, SLIDES)
    if reply.finish_reason == "length":
        return Finding(probe, metric, total, "tokens", "good", why, STOPS)
    if total < context - 1:
        return Finding(probe, metric, total, "tokens", "unknown", f"the model ended by itself: {why}")
    return Finding(probe, metric, total, "tokens", "bad", why, PRETENDS)
