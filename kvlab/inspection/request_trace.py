"""Traces of a few prompts under one policy: their tokens, and which of them left the KV cache, where and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from kvlab import models
from kvlab.counts import counted
from kvlab.decoder import Completion, Decoder
from kvlab.errors import RunError
from kvlab.inspection.tokens import EVICTED, TokenState, token_states, tokens_html
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy
from kvlab.recording.events import Shifted
from kvlab.recording.recorder import Recorder
from kvlab.systems import Candidate, System, config_of, policy_of

INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no whole character."""
MAX_CHARACTER_TOKENS = 4
"""Most tokens of one character: one for each byte in UTF-8."""

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


@dataclass(frozen=True, repr=False)
class RequestTrace:
    """The trace of one request: its tokens as text, and which of them left which layer and head at which step.

    ``evicted`` has ``layer``, ``head``, ``position``, ``step``; ``layers`` and ``heads`` are those that the policy
    could evict from (empty where it evicts nothing). ``dropped`` are spans of positions, and the step, at which a
    system dropped tokens of all layers, since the sequence had reached its context.
    """

    policy: Candidate
    completion: Completion
    texts: tuple[str, ...]
    evicted: pl.DataFrame
    dropped: tuple[tuple[int, int, int], ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return self.completion.prompt_tokens

    @property
    def steps(self) -> int:
        """The last decode step that can be looked at; step 0 is the end of the prompt."""
        return max(0, len(self.texts) - self.prompt_tokens - 1)

    @property
    def layers(self) -> list[int]:
        return self.evicted["layer"].unique().sort().to_list()

    @property
    def heads(self) -> list[int]:
        return self.evicted["head"].unique().sort().to_list()

    @property
    def answer(self) -> str:
        return "".join(self.texts[self.prompt_tokens :])

    @property
    def kept_tokens(self) -> float:
        """Tokens of prompt and answer that no head has evicted at the end, as a mean over layers and heads."""
        return sum(1 - state.gone for state in self.states())

    def states(self, step: int | None = None, layer: int | None = None, head: int | None = None) -> list[TokenState]:
        """Return the state of every token up to a decode step (None: the last), of one layer and head or over all."""
        found = self.evicted
        if layer is not None:
            found = found.filter(pl.col("layer") == layer)
        if head is not None:
            found = found.filter(pl.col("head") == head)
        looked_at = (len(self.layers) if layer is None else 1) * (len(self.heads) if head is None else 1)
        at = self.steps if step is None else min(step, self.steps)
        by_tier = self.completion.cached_by_tier
        found_states = token_states(
            min(len(self.texts), self.prompt_tokens + at + 1),
            self.prompt_tokens,
            found,
            shared=by_tier.get("live", 0),
            cached=self.completion.cached_tokens,
            step=at,
            heads=max(1, looked_at),
        )
        for start, stop, dropped_at in self.dropped:
            for place in range(start, min(stop, len(found_states)) if dropped_at <= at else start):
                found_states[place] = TokenState(EVICTED, found_states[place].generated, 1.0)
        return found_states

    def html(self, step: int | None = None, layer: int | None = None, head: int | None = None) -> str:
        """Return the tokens up to a decode step as text, coloured by state."""
        states = self.states(step, layer, head)
        where = ", ".join(
            f"{what} {'all' if which is None else which}" for what, which in (("layer", layer), ("KV head", head))
        )
        title = f"{self.policy} · step {self.steps if step is None else min(step, self.steps)} · {where}"
        return tokens_html(self.texts[: len(states)], states, title=title)

    def __repr__(self) -> str:
        return f"<{self.policy}: {counted(self.prompt_tokens, 'prompt token')}, answer {self.answer.strip()!r}>"

    def _repr_html_(self) -> str:
        return self.html()


def watch(
    policy: str | Policy | Module | System,
    prompts: Sequence[Prompt],
    model: str | Path | LoadedModel | None = None,
    *,
    max_tokens: int = 32,
    on_token: Callable[[int], None] = lambda _: None,
) -> list[RequestTrace]:
    """Serve the first prompt alone, then the others together, so that they can start from its KV and share theirs.

    A prompt is a text, a conversation of messages, or token ids. Greedy decoding. ``on_token`` is called with each
    token of the first answer as it comes. A trace of a system whose context cuts a prompt shows the rest of it. Raises
    KvlabError.
    """
    if not prompts:
        raise RunError("no prompts to watch; give one or more, such as a text or a list of messages")
    loaded = model if isinstance(model, LoadedModel) else models.load(model)
    candidate = policy if isinstance(policy, System) else Policy.parse(policy)
    ids = [prompt_ids(prompt, loaded) for prompt in prompts]
    recorder = Recorder()
    # No sequence stays warm: the traces show KV at rest.
    parsed, config = policy_of(candidate, loaded), config_of(candidate)
    with Decoder(loaded, parsed, recorder=recorder, config=config, retain=0) as decoder:
        stream = decoder.submit(ids[0], max_tokens=max_tokens)
        for token in stream:
            on_token(token)
        first = stream.result()
        others = [decoder.submit(prompt, max_tokens=max_tokens) for prompt in ids[1:]]
        done = [first, *(stream.result() for stream in others)]
        cuts = [decoder.limit.cut(len(prompt)) for prompt in ids]
    ids = [[*prompt[:start], *prompt[stop:]] for prompt, (start, stop) in zip(ids, cuts, strict=True)]
    evicted = recorder.frame("evicted").select("request", "layer", "head", "position", "step")
    return [
        RequestTrace(
            candidate,
            completion,
            tuple(pieces([*prompt, *completion.tokens], loaded)),
            evicted.filter(pl.col("request") == completion.request).drop("request"),
            tuple(_dropped(event for event in recorder.events if event.request == completion.request)),
        )
        for prompt, completion in zip(ids, done, strict=True)
    ]


def _dropped(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Yield the spans that shifts at the context limit dropped, in the positions of the whole sequence.

    Each shift begins behind the same first tokens, so a later one drops what came behind the span before.
    """
    before = 0
    for event in events:
        if isinstance(event, Shifted):
            yield event.kept + before, event.kept + before + event.removed, event.tokens
            before += event.removed


def pieces(ids: Sequence[int], loaded: LoadedModel) -> list[str]:
    """Return the text that each token adds, decoded after the token before it, which decides about leading spaces.

    A character that several tokens make up is the text of the last of them.
    """
    texts: list[str] = []
    before: list[int] = []
    open_tokens: list[int] = []
    for token in ids:
        open_tokens.append(token)
        text = _added(before, open_tokens, loaded)
        if text.endswith(INCOMPLETE) and len(open_tokens) < MAX_CHARACTER_TOKENS:
            texts.append("")
            continue
        texts.append(text)
        before, open_tokens = open_tokens, []
    if open_tokens:
        texts[-1] = _added(before, open_tokens, loaded)
    return texts


def _added(before: Sequence[int], tokens: Sequence[int], loaded: LoadedModel) -> str:
    """Return the text that ``tokens`` add to that of ``before``."""
    if not before:
        return loaded.decode(tokens)
    alone, both = loaded.decode(before), loaded.decode([*before, *tokens])
    return both[len(alone) :] if both.startswith(alone) else loaded.decode(tokens)


def prompt_ids(prompt: Prompt, loaded: LoadedModel) -> list[int]:
    """Return the token ids of a prompt; a text becomes a user's message. Raises ModelError without a chat template."""
    if isinstance(prompt, str):
        return loaded.render([{"role": "user", "content": prompt}])
    if prompt and isinstance(prompt[0], Mapping):
        return loaded.render(prompt)  # type: ignore[arg-type]
    return [int(token) for token in prompt]  # type: ignore[arg-type, call-overload]
