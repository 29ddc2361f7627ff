"""Sessions with real servers, request by request: what was sent, and how many cached tokens the server reported.

A file of observations holds no texts. What matters to a prefix cache is how far prompts agree, so each request names an
earlier one and the number of leading tokens that it has in common with it. Token ids made from that agree exactly as
far as the real ones did.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from kvlab.errors import KvlabError

Event = Literal["completion", "chat", "restart", "kill"]
"""A request to ``/v1/completions`` or ``/v1/chat/completions``; the server stopped in order, or killed, and started."""

MOST_OPENING_TOKENS = 64
"""Token ids from 1 up to this are those that a template opens a reply with; all others are larger."""

END_TOKEN = MOST_OPENING_TOKENS
"""The id of the token that ends a message."""

COLUMNS = (
    *("setup", "order", "scenario", "step", "event", "like", "common", "prompt_tokens", "suffix_tokens"),
    *("reply_tokens", "cached_tokens", "note", "ends", "last_role"),
)


class ObservationsError(KvlabError):
    """A file that holds no observations."""


@dataclass(frozen=True)
class Step:
    """One request to a server, or one restart of it.

    Attributes:
        prompt: Token ids.
        suffix: How many of them, at the end, the chat template adds so that the reply begins.
        reply: Token ids.
        cached: Prompt tokens that the server reports as not computed; None where it reports nothing.
        note: What went wrong; empty for a complete answer.
        ends: Tokens of the prompt up to the end of each message; empty for plain text, and where it is not known.
        last_role: Whose the last message is; empty where there are none.
    """

    scenario: str
    step: str
    event: Event
    prompt: tuple[int, ...] = ()
    suffix: int = 0
    reply: tuple[int, ...] = ()
    cached: int | None = None
    note: str = ""
    ends: tuple[int, ...] = ()
    last_role: str = ""

    @property
    def is_request(self) -> bool:
        """Whether something was asked."""
        return self.event in ("completion", "chat")

    @property
    def failed(self) -> bool:
        """Whether the server gave no answer."""
        return self.note.startswith("failed")


@dataclass(frozen=True)
class ObservedSession:
    """One server, started once with an empty cache, and all that it was asked, in order.

    ``facts`` holds ``server``, ``version``, ``flags``, ``packages``, ``model`` and ``date``.
    """

    setup: str
    steps: tuple[Step, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def write_observations(file: Path, sessions: Iterable[ObservedSession]) -> None:
    """Write sessions to ``file`` (CSV) and their facts beside it (JSON); sessions of other setups there are kept."""
    kept = {session.setup: session for session in (read_observations(file) if file.is_file() else ())}
    kept |= {session.setup: session for session in sessions}
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in sorted(kept):
            writer.writerows(_rows(kept[name]))
    facts = {name: kept[name].facts for name in sorted(kept)}
    file.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_observations(file: Path) -> list[ObservedSession]:
    """Return all sessions of a file. Raises ObservationsError where it is not there or holds something else."""
    try:
        facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        with file.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
        return [
            ObservedSession(name, tuple(_steps([row for row in rows if row["setup"] == name])), facts[name])
            for name in dict.fromkeys(row["setup"] for row in rows)
        ]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ObservationsError(f"{file} holds no observations ({type(error).__name__}: {error})") from error


def opening(count: int) -> tuple[int, ...]:
    """Return the ids of ``count`` tokens with which a chat template opens a reply, as steps of a file have them."""
    return tuple(range(1, count + 1))


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _rows(session: ObservedSession) -> Iterable[dict[str, Any]]:
    """Yield a row for each step; ``like`` is the number of the earlier step that has most in common, else empty."""
    earlier: list[tuple[int, ...]] = []
    for number, step in enumerate(session.steps):
        tokens = (*step.prompt, *step.reply)
        shared = [common_length(tokens, other) for other in earlier]
        common = max(shared, default=0)
        earlier.append(tokens)
        yield {
            "setup": session.setup,
            "order": number,
            "scenario": step.scenario,
            "step": step.step,
            "event": step.event,
            "like": shared.index(common) if common else "",
            "common": common,
            "prompt_tokens": len(step.prompt),
            "suffix_tokens": step.suffix,
            "reply_tokens": len(step.reply),
            "cached_tokens": "" if step.cached is None else step.cached,
            "note": step.note,
            "ends": " ".join(str(at) for at in step.ends),
            "last_role": step.last_role,
        }


def _steps(rows: Sequence[dict[str, str]]) -> Iterable[Step]:
    """Yield the steps of one session, with ids that agree as far as those of the requests did."""
    fresh, earlier = count(MOST_OPENING_TOKENS + 1), list[tuple[int, ...]]()
    for row in rows:
        common, prompt, reply = int(row["common"]), int(row["prompt_tokens"]), int(row["reply_tokens"])
        suffix = int(row["suffix_tokens"])
        known = earlier[int(row["like"])][:common] if row["like"] else ()
        if len(known) != common:
            raise ValueError(f"step {row['order']} has {common} tokens in common with one of {len(known)}")
        opens = dict(zip(range(prompt - suffix, prompt), opening(suffix), strict=True))
        ends = tuple(int(at) for at in (row.get("ends") or "").split())
        named = opens | dict.fromkeys((at - 1 for at in ends), END_TOKEN)
        tokens = (*known, *(named.get(at) or next(fresh) for at in range(common, prompt + reply)))
        earlier.append(tokens)
        event: Any = row["event"]
        cached = int(row["cached_tokens"]) if row["cached_tokens"] else None
        told = (suffix, tokens[prompt:], cached, row["note"])
        yield Step(row["scenario"], row["step"], event, tokens[:prompt], *told, ends, row.get("last_role") or "")
