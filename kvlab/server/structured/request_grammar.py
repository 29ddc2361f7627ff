"""The grammar of one request: compiled beside the event loop and the decoder, in bounded time."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.structured import json_schema
from kvlab.server.structured.constraint import Constraint, Trigger
from kvlab.server.structured.enforceable import Enforceable, Unenforced, enforceable
from kvlab.server.structured.grammar import CompiledGrammar, Grammars
from kvlab.server.structured.schema_limits import MAX_GRAMMAR_BYTES, check_size
from kvlab.server.structured.smallest import sizes
from kvlab.server.structured.tool_formats import (
    SPACING,
    EnforceableSchema,
    ToolFormat,
    enforceable_arguments,
    json_rule,
)
from kvlab.server.structured.trial import Trials

MAX_PREPARED = 64
"""Requests whose schemas are remembered; their grammars have a budget of their own."""
COMPILER_THREADS = 2
CALL_BYTES = 64
"""Text around a call's arguments, about."""
MIN_GROWTH_TOKENS, MAX_GROWTH_TOKENS = 16, 4096
RESPONSE_FORMAT = "response_format"


@dataclass(frozen=True)
class Wanted:
    """What an answer must look like.

    Args:
        tools: the tools that may be called.
        tool_choice: ``none``, ``auto`` or ``required``.
        many: an answer may hold several calls.
        schema: the JSON schema of an answer that is no call; None for free text.
        thinking: the text that ends the thinking before it; empty without thinking.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "none"
    many: bool = True
    schema: Mapping[str, Any] | None = None
    thinking: str = ""

    @property
    def strict(self) -> bool:
        """True when the client was promised a valid answer; otherwise a call that it begins is steered."""
        return self.schema is not None or self.tool_choice == "required"


@dataclass(frozen=True)
class RequestGrammar:
    """The compiled grammar of a request, and what it leaves open.

    Args:
        grammar: the grammar; None where the answer is free.
        trigger: the text that starts it; empty for the first token.
        once: see :class:`~kvlab.server.structured.constraint.Trigger`.
        unenforced: keywords that it leaves open.
    """

    grammars: Grammars
    grammar: CompiledGrammar | None
    trigger: str
    once: bool
    wanted: Wanted
    unenforced: tuple[Unenforced, ...]

    def constraint(self, max_tokens: int) -> Constraint | None:
        """Make the logits processor of one answer."""
        if self.grammar is None:
            return None
        if not self.trigger:
            return self.grammars.constraint(max_tokens=max_tokens, matcher=self.grammar)
        trigger = Trigger(self.trigger, self.grammar, once=self.once, with_text=not self.once)
        return self.grammars.constraint(max_tokens=max_tokens, trigger=trigger)

    def report(self, text: str, calls: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """Describe what was left open in a complete answer, and what of it the answer violates.

        Args:
            text: the answer's content.
            calls: name and arguments of its calls.
        """
        said = [
            {"schema": open_.where, "path": open_.path, "keyword": open_.keyword, "open": open_.reason}
            for open_ in self.unenforced
        ]
        if not said:
            return []
        schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in self.wanted.tools}
        checks = [(f"tool {name!r}", schemas.get(name, {}), arguments) for name, arguments in calls]
        if self.wanted.schema is not None and not calls:
            checks.append((RESPONSE_FORMAT, self.wanted.schema, text))
        for where, schema, value in checks:
            try:
                found = json_schema.problem(json_schema.loads(value), json_schema.normal(schema))
            except (ValueError, RecursionError):
                found = "not JSON"
            if found:
                said.append({"schema": where, "violated": found})
        return said


class RequestGrammars:
    """Prepares the grammars of one model's requests. One event loop; :meth:`close` ends its threads."""

    def __init__(self, grammars: Grammars, tool_format: ToolFormat) -> None:
        self._grammars, self._format = grammars, tool_format
        self._threads = ThreadPoolExecutor(COMPILER_THREADS, "kvlab-grammar")
        self._trials = Trials(SPACING)
        self._prepared: OrderedDict[bytes, RequestGrammar] = OrderedDict()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def prepare(self, wanted: Wanted) -> RequestGrammar | None:
        """Return the grammar of a request; None where any answer will do. Cancelling it ends its trial.

        Raises ApiError 400 that names the tool and the path of a schema that is too large, and of one that is wrong
        where a valid answer was promised.
        """
        if wanted.schema is None and (wanted.tool_choice == "none" or not wanted.tools):
            return None
        key = await self._run(_checked_key, wanted)
        found = self._prepared.get(key)
        if found is None:
            try:
                found = await self._prepare(wanted)
            except ApiError as error:
                if wanted.strict:
                    raise
                # No grammar for these schemas: a call is checked when it is complete.
                open_ = Unenforced("the tools", "#", "", error.message[:300])
                found = RequestGrammar(self._grammars, None, "", False, wanted, (open_,))
            self._prepared[key] = found
            if len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return found

    async def _prepare(self, wanted: Wanted) -> RequestGrammar:
        if not wanted.strict and not self._format.steered:
            return RequestGrammar(self._grammars, None, "", False, wanted, ())
        sources: list[Enforceable] = await self._run(_sources, wanted)
        wheres = _wheres(wanted)
        costly = [i for i, source in enumerate(sources) if not source.cheap]
        if costly:
            sources = await self._try(sources, wheres, costly, wanted.strict)
        try:
            grammar = await self._run(self._compile, wanted, sources, wheres)
        except ApiError:
            others = [i for i in range(len(sources)) if i not in costly]
            if not others:
                raise
            sources = await self._try(sources, wheres, others, wanted.strict)
            grammar = await self._run(self._compile, wanted, sources, wheres)
        unenforced = tuple(open_ for source in sources for open_ in source.unenforced)
        trigger = wanted.thinking if wanted.strict else self._format.trigger
        return RequestGrammar(self._grammars, grammar, trigger, wanted.strict, wanted, unenforced)

    async def _try(
        self, sources: list[Enforceable], wheres: list[str], which: list[int], strict: bool
    ) -> list[Enforceable]:
        tried = await self._trials.run([sources[i] for i in which], [wheres[i] for i in which], strict=strict)
        made = list(sources)
        for i, source in zip(which, tried, strict=True):
            made[i] = source
        return made

    def _compile(self, wanted: Wanted, sources: list[Enforceable], wheres: list[str]) -> CompiledGrammar:
        length = sum(len(json.dumps(source.schema)) for source in sources)
        what = f"the schema of {wheres[0]}" + (f", with {len(wheres) - 1} more," if len(wheres) > 1 else "")
        if length > MAX_GRAMMAR_BYTES:
            raise ApiError(400, f"{what} has {length} bytes, at most {MAX_GRAMMAR_BYTES}: send smaller or fewer ones")
        growth = float(CALL_BYTES)
        for source, where in zip(sources, wheres, strict=True):
            smallest, heaviest = sizes(source.schema)
            if smallest == float("inf") and wanted.strict:
                raise ApiError(400, f"the schema of {where} cannot be satisfied at #: it contains itself without end")
            growth = max(growth, heaviest + CALL_BYTES)
        endings = dict.fromkeys(ending for source in sources for ending in source.endings if ending)
        return self._grammars.compile(
            self._lark(wanted, sources),
            growth=int(min(max(growth, MIN_GROWTH_TOKENS), MAX_GROWTH_TOKENS)),
            endings=tuple(endings),
            multiples=any('"multipleOf"' in json.dumps(source.schema) for source in sources),
            what=what,
        )

    def _lark(self, wanted: Wanted, sources: list[Enforceable]) -> str:
        literal = self._grammars.literal
        gap = "/[ \\n]*/" if wanted.thinking else ""
        rule = f"\njson: {json_rule(sources[-1].schema)}" if wanted.schema is not None else ""
        answer = self._format.answer_start(literal)
        if not _calls(wanted):
            return f"%llguidance {{}}\nstart: {answer or gap} json{rule}"
        tools = [_with_schema(tool, source) for tool, source in zip(wanted.tools, sources, strict=False)]
        lark = self._format.grammar(
            tools,
            literal,
            many=wanted.many and wanted.strict,
            lenient=not wanted.strict,
            first=gap,
            otherwise=f"{answer} json" if rule else "",
        )
        return lark + rule

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _calls(wanted: Wanted) -> bool:
    return wanted.tool_choice != "none" and bool(wanted.tools)


def _with_schema(tool: Mapping[str, Any], source: Enforceable) -> dict[str, Any]:
    return {**tool, "function": {**tool["function"], "parameters": EnforceableSchema(source.schema)}}


def _wheres(wanted: Wanted) -> list[str]:
    named = [f"tool {tool['function']['name']!r}" for tool in wanted.tools] if _calls(wanted) else []
    return named + ([RESPONSE_FORMAT] if wanted.schema is not None else [])


def _checked_key(wanted: Wanted) -> bytes:
    """Check the sizes of all schemas, and return what tells this request's grammar from others."""
    tools = wanted.tools if _calls(wanted) else ()
    for tool in tools:
        check_size(tool["function"].get("parameters"), f"tool {tool['function']['name']!r}")
    check_size(wanted.schema, RESPONSE_FORMAT)
    schemas = [(tool["function"]["name"], tool["function"].get("parameters")) for tool in tools]
    facts = [schemas, wanted.tool_choice, wanted.many, wanted.schema, wanted.thinking]
    return hashlib.sha256(json.dumps(facts).encode()).digest()


def _sources(wanted: Wanted) -> list[Enforceable]:
    tools = wanted.tools if _calls(wanted) else ()
    made = [enforceable_arguments(tool, strict=wanted.strict) for tool in tools]
    if wanted.schema is not None:
        made.append(enforceable(wanted.schema, RESPONSE_FORMAT, strict=True))
    return made
