"""One loaded model that answers: its decoder, its grammars, its memory of answers."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlx.utils import tree_flatten

from kvlab.decoder import Decoder
from kvlab.decoder.context_limit import ContextError
from kvlab.decoder.event_emitter import EventSink
from kvlab.errors import ModelError
from kvlab.models import LoadedModel, group_of
from kvlab.policies import Policy
from kvlab.server.errors import ApiError
from kvlab.server.generation.answer_memory import AnswerMemory
from kvlab.server.generation.choice import Choice
from kvlab.server.generation.harmony_parser import HarmonyParser, MuseParser
from kvlab.server.generation.output_parser import CallReader, OutputParser
from kvlab.server.generation.prompt_cache import PromptCache
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.sampling import Logprobs, Sampling, SeededSampler, processors, sampler
from kvlab.server.generation.thinking import thinking_markers
from kvlab.server.generation.token_bytes import TokenBytes
from kvlab.server.logs import log
from kvlab.server.settings import Settings
from kvlab.server.structured.grammar import Grammars
from kvlab.server.structured.request_grammar import RequestGrammars, Wanted
from kvlab.server.structured.tool_families.choose import tool_format
from kvlab.store.from_policy import open_answer_files

MESSAGE_PARSERS = {"harmony": HarmonyParser, "muse-spark": MuseParser}
"""Parsers of the families whose answers are messages, each behind a header; all others have one form."""


class ServedModel:
    """Answers requests with one model under one policy. Close it to free its memory.

    Raises ModelError for a model that is split over ranks.
    """

    def __init__(self, loaded: LoadedModel, policy: Policy, settings: Settings, sink: EventSink | None = None) -> None:
        if group_of(loaded.model) is not None:
            raise ModelError(f"{loaded.name} is split over ranks: a server has one process; load it whole")
        self.loaded, self.policy = loaded, policy
        self.name = loaded.name  # a pool may replace it by the name that clients use
        self.decoder = Decoder(
            loaded,
            policy,
            recorder=sink,
            config=settings.decoder,
            max_concurrency=settings.max_concurrency,
            prefill_step=settings.prefill_step,
            live_memory=settings.live_memory,
        )
        self.grammars = Grammars(loaded)
        self.tool_format = tool_format(loaded.tokenizer)
        self.request_grammars = RequestGrammars(self.grammars, self.tool_format)
        self.thinking = thinking_markers(loaded.tokenizer)
        self.token_bytes = TokenBytes(loaded.tokenizer)
        log("reading answers", model=self.name, calls=self.tool_format.family, thinking=(self.thinking or ("",))[0])
        self.created = int(time.time())
        arrays: Any = tree_flatten(loaded.model.parameters())
        self.nbytes = sum(array.nbytes for _, array in arrays)
        self.defaults = _defaults(loaded)
        own = _context(loaded)
        limit = self.decoder.limit
        self.limit = limit if limit.context is not None else replace(limit, context=own)
        self.context = self.limit.context or own
        answers = AnswerMemory(files=open_answer_files(policy) if self.decoder.store is not None else None)
        self.prompts = PromptCache(loaded, context=max(self.context, own), answers=answers)

    def close(self) -> None:
        self.request_grammars.close()
        self.decoder.close()

    def limit_tokens(self, prompt_tokens: int, max_tokens: int | None, default: int) -> int:
        """Return how many tokens may be generated. Raises ApiError 400 where the context limit refuses the request."""
        try:
            start, stop = self.limit.cut(prompt_tokens)
            return self.limit.answer(prompt_tokens - (stop - start), max_tokens or default)
        except ContextError as error:
            raise ApiError(400, f"{error}", code="context_length_exceeded", param="messages") from error

    def start_choice(self, index: int, request: GenerationRequest, tenant: str, tags: Mapping[str, Any]) -> Choice:
        """Submit one answer to the decoder. Call it on the event loop that reads the answer."""
        constraint = None if request.grammar is None else request.grammar.constraint(request.max_tokens)
        logprobs = Logprobs(request.logprobs) if request.logprobs is not None else None
        sample = sampler(request.sampling, index, self.loaded.vocab_size)
        start, stop = self.limit.cut(len(request.prompt.ids))
        chain: list[Any] = processors(request.sampling, len(request.prompt.ids) - (stop - start))
        chain += [part for part in (constraint, logprobs) if part is not None]
        if isinstance(sample, SeededSampler):
            chain.append(sample.note_position)
        parser = self._parser(request, trusted=constraint is not None and request.tool_choice == "required")
        stream = self.decoder.submit(
            request.prompt.ids,
            max_tokens=request.max_tokens,
            sampler=sample,
            logits_processors=chain,
            tags=tags,
            tenant=tenant,
            group=str(tags["request"]),
        )
        return Choice(index, request, stream, parser, constraint, logprobs)

    def _parser(self, request: GenerationRequest, *, trusted: bool) -> OutputParser:
        detokenizer = self.loaded.tokenizer.detokenizer
        if request.plain:  # their text is sent as it is
            return OutputParser(detokenizer, stop=request.stop, verbatim=request.schema is not None)
        may_call = request.tools and request.tool_choice != "none"
        kind: Any = MESSAGE_PARSERS.get(self.tool_format.family)
        kind = OutputParser if kind is None else functools.partial(kind, continues=request.prompt.continues)
        parser: OutputParser = kind(
            detokenizer,
            thinking=self.thinking,
            calls=CallReader(self.tool_format, request.tools, trusted) if may_call else None,
            stop=request.stop,
            reasoning=request.prompt.reasoning,
            verbatim=request.schema is not None,
            dropped=self.loaded.tokenizer.structural_markers,
        )
        return parser

    async def compile_grammar(self, request: GenerationRequest) -> GenerationRequest:
        """Return the request with its compiled grammar; cancelling ends the compilation.

        It takes bounded time on threads of its own, beside the event loop and the decoder. Raises ApiError 400 for a
        schema that is too large, and for an impossible one.
        """
        if request.plain and request.schema is None:
            return request
        wanted = Wanted(
            tools=request.tools,
            tool_choice=request.tool_choice,
            many=request.parallel_calls,
            schema=request.schema,
            thinking=self.thinking[1] if self.thinking and request.prompt.reasoning else "",
        )
        return replace(request, grammar=await self.request_grammars.prepare(wanted))


def _defaults(loaded: LoadedModel) -> Sampling:
    """Return the sampling that the model's authors recommend; greedy without a recommendation."""
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
    """Return the model's context window in tokens."""
    if isinstance(loaded.context_length, int):
        return loaded.context_length
    length = getattr(loaded.tokenizer, "model_max_length", 0)
    return int(length) if 0 < length < 10**9 else 32768
