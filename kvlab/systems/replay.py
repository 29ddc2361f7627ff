"""Asks a system what a real server was asked, and returns its cached tokens: the two should be equal."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from kvlab.decoder import Decoder
from kvlab.decoder.reuse.prompts import LAST_ROLE_TAG
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.systems.base import System
from kvlab.systems.observations import END_TOKEN, MOST_OPENING_TOKENS, ObservedSession, Step, opening

Sampler = Callable[[mx.array], mx.array]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One request of a session: the cached tokens that the server reported, and those of the system."""

    step: Step
    ours: int

    @property
    def equal(self) -> bool:
        """Whether both are the same, or the server gave no answer to compare with."""
        return self.step.failed or (self.step.cached or 0) == self.ours


def compare_with_session(system: System, model: LoadedModel, session: ObservedSession) -> list[Compared]:
    """Serve every request of a session in order, replies as the server gave them, restarts included.

    ``model`` computes the KV; its vocabulary must hold the session's token ids (:func:`most_tokens`). Its tokenizer is
    not used, since a session holds no text.
    """
    chats = [step.suffix for step in session.steps if step.event == "chat"]
    tokenizer = _tokenizer(max(chats, default=0), session.facts.get("user_opening_tokens", 0))
    model = dataclasses.replace(model, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory(prefix="kvlab-replay-") as folder:
        return list(_served(system, model, session.steps, Path(folder)))


def most_tokens(sessions: Iterable[ObservedSession]) -> int:
    """Return the size of a vocabulary that holds all token ids of these sessions."""
    ids = (max((*step.prompt, *step.reply), default=0) for session in sessions for step in session.steps)
    return max(MOST_OPENING_TOKENS, *ids) + 1


def _served(system: System, model: LoadedModel, steps: Sequence[Step], folder: Path) -> Iterator[Compared]:
    place = _Decoder(system, model, folder)
    try:
        for step in steps:
            if not step.is_request:
                place.restart()
                continue
            tags = {LAST_ROLE_TAG: step.last_role} if step.last_role else {}
            done = place.decoder.generate(
                step.prompt, max_tokens=max(1, len(step.reply)), sampler=_forced(step.reply or (0,)), tags=tags
            )
            yield Compared(step, done.cached_tokens)
    finally:
        place.decoder.close()


def _tokenizer(opens: int, user_opens: int) -> Any:
    """Return a tokenizer of which the decoder learns two things: the tokens that open a reply, and a user's message."""

    def apply_chat_template(messages: Any, *, add_generation_prompt: bool, **_: Any) -> list[int]:
        written = [(*opening(user_opens), ord(message["content"][:1] or " "), END_TOKEN) for message in messages]
        return [
            *(token for message in written for token in message),
            *(opening(opens) if add_generation_prompt else ()),
        ]

    return SimpleNamespace(
        eos_token_ids=[END_TOKEN],
        bos_token_id=None,
        has_chat_template=True,
        has_thinking=False,
        encode=lambda text, **_: [0],
        apply_chat_template=apply_chat_template,
    )


class _Decoder:
    """A decoder with its KV at rest in a folder, which a restart leaves there."""

    def __init__(self, system: System, model: LoadedModel, folder: Path) -> None:
        self._system, self._model, self._folder = system, model, folder
        self.decoder = self._opened()

    def restart(self) -> None:
        self.decoder.close()
        self.decoder = self._opened()

    def _opened(self) -> Decoder:
        policy = self._system.for_model(self._model).policy
        tiers = policy.tiers
        if tiers is not None and any(field.name == "dir" for field in dataclasses.fields(tiers)):
            tiers = dataclasses.replace(tiers, **{"dir": str(self._folder)})
            policy = Policy(policy.retention, policy.codec, policy.reuse, tiers)
        return Decoder(self._model, policy, config=self._system.config)


def _forced(reply: Sequence[int]) -> Sampler:
    """Return a sampler that says ``reply`` whatever the model finds likely."""
    tokens = iter(reply)
    return lambda logprobs: mx.full(logprobs.shape[:-1], next(tokens, reply[-1]))
