"""Serving conversations: the turns of each in order, several conversations at once, through one decoder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any

from kvlab.decoder import Completion, Decoder
from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.context_limit import ContextError
from kvlab.decoder.reuse.prompts import LAST_ROLE_TAG
from kvlab.decoder.shared_prompts import PromptStore
from kvlab.errors import PolicyWarning
from kvlab.models import LoadedModel
from kvlab.policies import Policy, Ram
from kvlab.recording.recorder import Recorder
from kvlab.tiers import tiers_at_rest

WARMUP_TOKENS = 256


@dataclass(frozen=True)
class Turn:
    """One prompt of a conversation, as token ids; after `compress_after` of them scorers evict (None: after all).

    `last_role` is whose the last message is: `user`, `tool`.
    """

    conversation: str
    turn: int
    prompt: tuple[int, ...]
    max_tokens: int
    compress_after: int | None = None
    last_role: str = "user"


@dataclass(frozen=True)
class ServedTurn:
    """The answer to a turn with its times, and the bytes of its live KV and of the store at its end.

    Attributes:
        cut_tokens: tokens that were dropped from the middle of a prompt beyond the context limit.
        discarded_tokens: tokens that left the context while the answer went on beyond its limit.
        refused: whether the context limit refused the request: there is no answer then, and no time.
    """

    conversation: str
    turn: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    miss: str
    ttft_ms: float
    tpot_ms: float | None
    itl_ms: tuple[float, ...]
    kv_bytes_live: int
    store: Mapping[str, int]
    cut_tokens: int = 0
    discarded_tokens: int = 0
    refused: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether all of the prompt was read and nothing of it was dropped."""
        return not (self.refused or self.cut_tokens or self.discarded_tokens)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ServedTurn:
        """Build a turn from the JSON of `dataclasses.asdict`."""
        return cls(**{**values, "tokens": tuple(values["tokens"]), "itl_ms": tuple(values["itl_ms"])})


def serve_turns(
    model: LoadedModel,
    policy: Policy,
    turns: Sequence[Turn],
    *,
    concurrency: int = 1,
    store: PromptStore | None = None,
    recorder: Recorder | None = None,
    tags: Mapping[str, Any] | None = None,
    config: DecoderConfig | None = None,
    done: Callable[[ServedTurn], None] = lambda served: None,
) -> list[ServedTurn]:
    """Serve every turn through one new decoder, each after the turn before it in its conversation has ended.

    `concurrency` conversations run at once, and as many requests in the decoder unless its settings are given, those of
    a system: then others wait there. When this returns, the store is closed and complete on its lowest tier; a
    `store` of the caller's stays open.
    A turn that the context limit refuses has no answer; its conversation goes on. The first other error ends all
    conversations. Results are in the order of `turns`.
    """
    warm_up(model, policy, turns, config)
    loop: dict[str, Any] = {"max_concurrency": max(1, concurrency)} if config is None else {"config": config}
    conversations: dict[str, list[Turn]] = {}
    for turn in turns:
        conversations.setdefault(turn.conversation, []).append(turn)
    served: dict[tuple[str, int], ServedTurn] = {}
    stopped = Event()

    with Decoder(model, policy, store=store, recorder=recorder, **loop) as decoder:

        def converse(mine: Iterable[Turn]) -> None:
            for turn in mine:
                if stopped.is_set():
                    return
                labels = {
                    **(tags or {}),
                    "conversation": turn.conversation,
                    "turn": turn.turn,
                    LAST_ROLE_TAG: turn.last_role,
                }
                completion = _completion(decoder, turn, labels)
                if len(served) == len(turns) - 1 and decoder.store is not None:
                    decoder.store.flush()  # so that the last turn's figures say what reached the disk
                result = _served(turn, completion, _store_bytes(decoder))
                served[turn.conversation, turn.turn] = result
                done(result)

        with ThreadPoolExecutor(max(1, concurrency), thread_name_prefix="conversation") as pool:
            futures = [pool.submit(converse, mine) for mine in conversations.values()]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stopped.set()
                for future in futures:
                    future.cancel()
        for future in futures:
            if not future.cancelled():
                future.result()
    return [served[turn.conversation, turn.turn] for turn in turns]


def warm_up(model: LoadedModel, policy: Policy, turns: Sequence[Turn], config: DecoderConfig | None = None) -> None:
    """Serve an unrelated prompt and its continuation, with a temporary store in RAM.

    Kernels, allocator and code are warm afterwards, and no KV remains. Nobody is warned of a budget that is small for
    these prompts: they are shorter than those of the workload.
    """
    if not turns:
        return
    longest = max((turn.prompt for turn in turns), key=len)
    unrelated = longest[: -WARMUP_TOKENS - 1 : -1]  # the end of a real prompt, backwards
    parts = (policy.retention, policy.codec, policy.reuse, Ram() if policy.tiers else None)
    loop: dict[str, Any] = {}
    if config is not None:  # these prompts are shorter than those of the workload
        loop["config"] = dataclasses.replace(config, context=None, overflow="stop", long_prompt="error")
    warm = Policy(*(part for part in parts if part is not None))
    with warnings.catch_warnings(), Decoder(model, warm, **loop) as decoder:
        warnings.simplefilter("ignore", PolicyWarning)
        decoder.generate(unrelated[: len(unrelated) // 2 + 1], max_tokens=2)
        decoder.generate(unrelated, max_tokens=2)


def _completion(decoder: Decoder, turn: Turn, tags: Mapping[str, Any]) -> Completion | None:
    """Return the answer to a turn; None where the context limit refuses it."""
    try:
        return decoder.generate(turn.prompt, max_tokens=turn.max_tokens, tags=tags, compress_after=turn.compress_after)
    except ContextError:
        return None


def _served(turn: Turn, completion: Completion | None, store: Mapping[str, int]) -> ServedTurn:
    if completion is None:
        return ServedTurn(
            turn.conversation, turn.turn, (), len(turn.prompt), 0, "", 0.0, None, (), 0, store, refused=True
        )
    return ServedTurn(
        turn.conversation,
        turn.turn,
        tuple(completion.tokens),
        completion.prompt_tokens,
        completion.cached_tokens,
        completion.miss,
        completion.ttft_ms,
        completion.tpot_ms,
        tuple(completion.itl_ms),
        completion.kv_bytes_live,
        store,
        completion.cut_tokens,
        completion.discarded_tokens,
    )


def _store_bytes(decoder: Decoder) -> dict[str, int]:
    """Return bytes of KV at rest by tier, and the bytes that this decoder has written to the SSD so far."""
    if not (held := decoder.tiers_bytes()):
        return {}
    written = int(decoder.store.stats()["bytes_written"]) if decoder.store is not None else 0
    return {tier.metric: held.get(tier.name, 0) for tier in tiers_at_rest(held)} | {"bytes_written": written}


def to_json(items: Iterable[Turn | ServedTurn]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(item) for item in items]
