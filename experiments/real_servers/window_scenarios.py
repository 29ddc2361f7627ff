"""What a session asks of a model with sliding windows: from where on can a prompt longer than a window go on?

A long prompt has ``session.long`` tokens. A layer with a window holds the rows before the last token alone, so a
request that leaves the prompt earlier needs a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from scenarios import end_of
from session import Session

SHORT, WITHIN = 40, 300
"""Tokens that are added to a prompt, and those of a prompt that fits into a window."""

BEFORE_END = (2, 40, 300, 600, 1000)
"""Tokens that are left of a long prompt where another one leaves it."""


def window_repeat(session: Session) -> None:
    """The same prompt twice more."""
    prompt = session.take(session.long, "a")
    session.complete("first", prompt)
    session.complete("again", prompt)
    session.complete("once more", prompt)


def window_append(session: Session) -> None:
    """A prompt, then the same with more text, twice; the replies are not sent back."""
    prompt = session.take(session.long, "a")
    session.complete("first", prompt)
    longer = prompt + session.take(SHORT, "b")
    session.complete("longer", longer)
    session.complete("longest", longer + session.take(SHORT, "c"))


def window_reply_kept(session: Session) -> None:
    """A prompt, then the same with its reply and more text."""
    prompt = session.take(session.long, "a")
    reply = session.complete("first", prompt, 8)
    session.complete("longer", prompt + reply + session.take(SHORT, "b"))


def window_divergence(session: Session) -> None:
    """A prompt, then another that leaves it so many tokens before its end; then the first again."""
    for left in BEFORE_END:
        prompt = session.take(session.long, f"a{left}")
        session.complete(f"{left} first", prompt)
        other = prompt[: end_of(prompt, session.long - left)] + session.take(left + SHORT, f"b{left}")
        session.complete(f"{left} other", other)
        session.complete(f"{left} first again", prompt)


def window_within(session: Session) -> None:
    """Prompts that fit into a window: again, longer, and another that leaves it in the middle."""
    prompt = session.take(WITHIN, "a")
    session.complete("first", prompt)
    session.complete("again", prompt)
    session.complete("longer", prompt + session.take(SHORT, "b"))
    session.complete("other half", prompt[: end_of(prompt, WITHIN // 2)] + session.take(WITHIN // 2, "c"))
    session.complete("first again", prompt)


def window_alternate(session: Session) -> None:
    """Two agents with two thirds of their prompts in common take turns."""
    common = session.take(session.long * 2 // 3, "common")
    agents = [common + session.take(session.long // 3, name) for name in "ab"]
    for turn in range(2):
        for name, prompt in zip("ab", agents, strict=True):
            session.complete(f"{name}{turn}", prompt)


def window_chat(session: Session) -> None:
    """An agent's turns behind a system prompt of half the length, and another user behind it."""
    system = _message(session, "system", session.long // 2, "system")
    first = [system, _message(session, "user", session.long // 2, "a")]
    reply = session.chat("first", first)
    session.chat("again", first)
    turn = [*first, {"role": "assistant", "content": reply.strip()}, _message(session, "user", SHORT, "b")]
    session.chat("next turn", turn)
    session.chat("other user", [system, _message(session, "user", session.long // 2, "c")])
    session.chat("first again", first)


def window_tool(session: Session) -> None:
    """A turn that ends with a tool's result: again, the next turn, and another user behind the system prompt."""
    system = _message(session, "system", session.long // 2, "system")
    called = [
        system,
        _message(session, "user", SHORT, "a"),
        _message(session, "assistant", SHORT, "call"),
        _message(session, "tool", session.long // 2, "result"),
    ]
    reply = session.chat("first", called)
    session.chat("again", called)
    turn = [*called, {"role": "assistant", "content": reply.strip()}, _message(session, "user", SHORT, "b")]
    session.chat("next turn", turn)
    session.chat("other user", [system, _message(session, "user", SHORT, "c")])
    session.chat("first again", called)


def window_restart(session: Session) -> None:
    """What is known after an orderly stop."""
    prompt = session.take(session.long, "a")
    session.complete("before", prompt)
    session.restart("restart")
    session.complete("after", prompt)
    session.complete("again", prompt)


WINDOW_SCENARIOS: tuple[Callable[[Session], None], ...] = (
    *(window_repeat, window_append, window_reply_kept, window_divergence, window_within),
    *(window_alternate, window_chat, window_tool, window_restart),
)
"""In the order that they are asked in: one session, one cache."""

PLAIN_WINDOW_SCENARIOS = tuple(one for one in WINDOW_SCENARIOS if one not in (window_chat, window_tool))
"""For a model without a chat template."""


def _message(session: Session, role: str, tokens: int, name: str) -> dict[str, str]:
    return {"role": role, "content": session.take(tokens, name).strip()}
