"""What a session asks: each scenario is one question about a cache, with prompts of a few hundred tokens."""

from __future__ import annotations

from collections.abc import Callable

from session import Session

LONG, SHORT = 300, 40
SHARES = (24, 36, 90)
"""Tokens that two prompts of ``LONG`` tokens have in common: 8, 12 and 30 per cent."""

LATER_SHARES = (36, 72, 78, 150)
"""12, 24, 26 and 50 per cent."""

CONVERSATIONS = 10
"""As many as mlx-lm's prompt cache holds."""


def repeat(session: Session) -> None:
    """The same prompt again."""
    prompt = session.take(LONG, "a")
    session.complete("first", prompt)
    session.complete("again", prompt)


def append(session: Session) -> None:
    """A prompt, then the same with more text; the reply is not sent back."""
    prompt = session.take(LONG, "a")
    session.complete("first", prompt)
    session.complete("longer", prompt + session.take(SHORT, "b"))


def reply_kept(session: Session) -> None:
    """A prompt, then the same with its reply and more text."""
    prompt = session.take(LONG, "a")
    reply = session.complete("first", prompt, 8)
    session.complete("longer", prompt + reply + session.take(SHORT, "b"))


def divergence(session: Session) -> None:
    """A prompt, then another that leaves it in the middle; then the first again."""
    prompt = session.take(LONG, "a")
    session.complete("first", prompt)
    session.complete("other half", prompt[: end_of(prompt, LONG // 2)] + session.take(LONG // 2, "b"))
    session.complete("first again", prompt)


def shares(session: Session) -> None:
    """Two prompts with a beginning in common, of several lengths; then the first again: has it lost its KV?"""
    for common in SHARES:
        prompt = session.take(LONG, f"a{common}")
        session.complete(f"{common} first", prompt)
        beginning = prompt[: end_of(prompt, common)]
        session.complete(f"{common} other", beginning + session.take(LONG - common, f"b{common}"))
        session.complete(f"{common} first again", prompt)


def shares_later(session: Session) -> None:
    """As ``shares``, but another prompt came between: the first is not what the server has live."""
    for common in LATER_SHARES:
        prompt = session.take(LONG, f"a{common}")
        session.complete(f"{common} first", prompt)
        session.complete(f"{common} between", session.take(LONG, f"between{common}"))
        beginning = prompt[: end_of(prompt, common)]
        session.complete(f"{common} other", beginning + session.take(LONG - common, f"b{common}"))
        session.complete(f"{common} first again", prompt)


def alternate(session: Session) -> None:
    """Two agents with 100 tokens in common take turns."""
    common = session.take(100, "common")
    agents = [common + session.take(LONG - 100, name) for name in "ab"]
    for turn in range(2):
        for name, prompt in zip("ab", agents, strict=True):
            session.complete(f"{name}{turn}", prompt)


def rotation(session: Session) -> None:
    """Nine conversations in rotation, twice: more than a small cache holds."""
    for turn in range(2):
        for name in "abcdefghi":
            session.complete(f"{name}{turn}", session.take(LONG, name))


def order(session: Session) -> None:
    """Ten short conversations; three are read again, each in another way, and two more come: who has left?"""
    for number in range(CONVERSATIONS):
        session.complete(f"c{number}", session.take(SHORT, f"c{number}"))
    session.complete("c0 read", session.take(SHORT, "c0") + session.take(SHORT // 2, "more"))
    session.complete("c1 read", session.take(SHORT, "c1"))
    branch = session.take(SHORT, "c2")
    session.complete("c2 branch", branch[: end_of(branch, SHORT * 3 // 4)] + session.take(SHORT // 4, "branch"))
    session.complete("c10", session.take(SHORT, "c10"))
    session.complete("c11", session.take(SHORT, "c11"))
    for number in (1, 0, 2, 3, 9):
        session.complete(f"c{number} after", session.take(SHORT, f"c{number}"))


def chat(session: Session) -> None:
    """An agent's turns: repeat, next turn, the same system prompt under another user.

    No message begins with a space, since one of the servers would drop it: the reply has other tokens when it is sent
    back than when it was made.
    """
    system = {"role": "system", "content": session.take(LONG, "system").strip()}
    first = [system, {"role": "user", "content": session.take(SHORT, "a").strip()}]
    reply = session.chat("first", first)
    session.chat("again", first)
    turn = [
        {"role": "assistant", "content": reply.strip()},
        {"role": "user", "content": session.take(SHORT // 4, "b").strip()},
    ]
    session.chat("next turn", [*first, *turn])
    session.chat("other user", [system, {"role": "user", "content": session.take(SHORT, "c").strip()}])
    session.chat("first again", first)


def restart(session: Session) -> None:
    """What is known after an orderly stop."""
    prompt, chatted = session.take(LONG, "a"), [{"role": "user", "content": session.take(LONG, "b").strip()}]
    session.complete("before", prompt)
    session.chat("chat before", chatted)
    session.restart("restart")
    session.complete("after", prompt)
    session.chat("chat after", chatted)


def crash(session: Session) -> None:
    """What is known after SIGKILL, which came a moment after the answer."""
    prompt = session.take(LONG, "a")
    session.complete("before", prompt)
    session.restart("kill", kill=True)
    session.complete("after", prompt)


def exact(session: Session) -> None:
    """A prompt with exactly the reply that it got: all of it is known, and one token must be computed all the same."""
    prompt = session.take(SHORT, "a")
    reply = session.complete("first", prompt, 1)
    session.complete("with its reply", prompt + reply, 1)
    session.complete("afterwards", session.take(SHORT, "b"), 1)


SCENARIOS: tuple[Callable[[Session], None], ...] = (
    *(
        repeat,
        append,
        reply_kept,
        divergence,
        shares,
        shares_later,
        alternate,
        rotation,
        order,
        chat,
        restart,
        crash,
        exact,
    ),
)
"""In the order that they are asked in: one session, one cache. The last may end a server."""

BRIEF_SCENARIOS = tuple(one for one in SCENARIOS if one not in (shares, shares_later, rotation))
"""For a model that takes its time: without those that ask for the same thing at many lengths."""


def end_of(text: str, words: int) -> int:
    """Return where the first ``words`` words end, each after one space."""
    at = 0
    for _ in range(words):
        at = text.find(" ", at + 1)
    return at
