"""One loaded model that answers: its decoder, its grammars, its memory of answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from mlx.utils import tree_flatten

from kvlab.decoder import Decoder
from kvlab.decoder.event_emitter import EventSink
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.server.errors import ApiError
from kvlab.server.generation.choice import Choice
from kvlab.server.generation.output_parser import OutputParser
from kvlab.server.generation.prompt_cache import PromptCache
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.sampling import Logprobs, Sampling, Seeded, processors, sampler
from kvlab.server.settings import Settings
from kvlab.server.structured import json_schema
from kvlab.server.structured.grammar import Constraint, Grammars, Trigger
from kvlab.server.structured.tool_formats import Format, json_rule


class ServedModel:
    """Answers requests with one model under one policy. Close it to let go of everything."""

    def __init__(self, loaded: LoadedModel, policy: Policy, settings: Settings, sink: EventSink | None = None) -> None:
        self.loaded, self.policy = loaded, policy
        self.name = loaded.name  # what clients call it; a pool may call it otherwise
        self.decoder = Decoder(
            loaded,
            policy,
            recorder=sink,
            max_concurrency=settings.max_concurrency,
            prefill_step=settings.prefill_step,
            live_memory=settings.live_memory,
        )
        self.prompts = PromptCache(loaded)
        self.grammars = Grammars(loaded)
        self.form = Format(loaded.tokenizer)
        self.created = int(time.time())
        arrays: Any = tree_flatten(loaded.model.parameters())
        self.nbytes = sum(array.nbytes for _, array in arrays)
        self.defaults = _defaults(loaded)
        self.context = _context(loaded)

    def close(self) -> None:
        self.decoder.close()

    def check_room(self, ask_tokens: int, max_tokens: int | None, default: int) -> int:
        """The number of tokens that may be generated. Raises ApiError 400 when the prompt fills the context."""
        room = self.context - ask_tokens
        if room < 1:
            raise ApiError(
                400,
                f"the prompt has {ask_tokens} tokens, but the context of {self.name} is {self.context}: shorten it",
                code="context_length_exceeded",
                param="messages",
            )
        return min(max_tokens or default, room)

    def choose(self, index: int, ask: GenerationRequest, tenant: str, tags: Mapping[str, Any]) -> Choice:
        """Start one answer. On the event loop, so that its tokens find their way there."""
        constraint = None if ask.raw and ask.schema is None else self._constraint(ask)
        logprobs = Logprobs(ask.logprobs) if ask.logprobs is not None else None
        draw = sampler(ask.sampling, index, self.loaded.vocab_size)
        chain: list[Any] = processors(ask.sampling, len(ask.prompt.ids))
        chain += [part for part in (constraint, logprobs) if part is not None]
        if isinstance(draw, Seeded):
            chain.append(draw.watch)
        call = (self.form.start, self.form.end) if ask.tools and ask.call != "none" else None
        reader = OutputParser(
            _Plain(self.loaded.tokenizer) if ask.raw else self.loaded.tokenizer,
            call=call,
            stop=ask.stop,
            reasoning=ask.prompt.reasoning,
        )
        stream = self.decoder.submit(
            ask.prompt.ids,
            max_tokens=ask.max_tokens,
            sampler=draw,
            logits_processors=chain,
            tags=tags,
            tenant=tenant,
        )
        return Choice(index, ask, stream, reader, self.form, constraint, logprobs)

    def prepare(self, ask: GenerationRequest) -> None:
        """Compile the request's grammar, off the event loop. Raises ApiError 400 for what cannot be one."""
        if not ask.raw or ask.schema is not None:
            self._constraint(ask)

    def _constraint(self, ask: GenerationRequest) -> Constraint | None:
        grammars, tokenizer = self.grammars, self.loaded.tokenizer
        thinking = tokenizer.think_end if ask.prompt.reasoning else None
        if ask.schema is not None:
            lark = f"%llguidance {{}}\nstart: {'gap' if thinking else ''} json\ngap: /[ \\n]*/\njson: "
            lark += json_rule(json_schema.normal(ask.schema))
        elif ask.call == "required":
            gap = "/[ \\n]*/" if thinking else ""
            lark = self.form.grammar(ask.tools, grammars.literal, many=ask.many, lenient=False, first=gap)
        elif ask.call == "auto" and ask.tools and self.form.steered:
            lark = self.form.grammar(ask.tools, grammars.literal, many=False, lenient=True)
            try:
                trigger = Trigger(self.form.start, grammars.compile(lark))
            except ApiError:  # a schema beyond grammars: the call is checked when it is complete
                return None
            return grammars.constraint(max_tokens=ask.max_tokens, trigger=trigger)
        else:
            return None
        matcher = grammars.compile(lark)
        if thinking:
            trigger = Trigger(thinking, matcher, once=True, with_text=False)
            return grammars.constraint(max_tokens=ask.max_tokens, trigger=trigger)
        return grammars.constraint(max_tokens=ask.max_tokens, matcher=matcher)


class _Plain:
    """A tokenizer without thinking, for plain completions: their text is told as it is."""

    has_thinking = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def detokenizer(self) -> Any:
        return self._tokenizer.detokenizer


def _defaults(loaded: LoadedModel) -> Sampling:
    """What the model's authors recommend; greedy where they say nothing."""
    try:
        config = json.loads((loaded.path / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Sampling()
    if not isinstance(config, dict) or not config.get("do_sample"):
        return Sampling()
    return Sampling(
        float(config.get("temperature", 1.0)), float(config.get("top_p", 1.0)), int(config.get("top_k") or 0)
    )


def _context(loaded: LoadedModel) -> int:
    """The model's context window in tokens."""
    config = json.loads((loaded.path / "config.json").read_text(encoding="utf-8"))
    for settings in (config, config.get("text_config") or {}):
        if isinstance(settings.get("max_position_embeddings"), int):
            return int(settings["max_position_embeddings"])
    length = getattr(loaded.tokenizer, "model_max_length", 0)
    return int(length) if 0 < length < 10**9 else 32768
