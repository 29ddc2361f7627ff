"""The answers of a teacher-forced workload as token ids of a model, each token with the kind of what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvlab.counts import counted
from kvlab.decoder.teacher_forcing import ForcedAnswer, without_early_end
from kvlab.errors import ModelError, RunError, WorkloadError
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.workloads import WorkloadRequest
from kvlab.workloads.call_spans import NAME, SYNTAX, Span, argument_spans, changed_part, kind_of
from kvlab.workloads.forced import TextRequest

REPLACEMENTS = "QXZJVKWqxzjvkw0"
"""Letters of which replacements of names and arguments are made: one that they do not hold."""


@dataclass(frozen=True)
class ForcedItem:
    """A request of a workload, its answer as tokens, and the kind of each token (see ``call_spans.TOKEN_KINDS``)."""

    request: WorkloadRequest
    forced: ForcedAnswer
    kinds: tuple[str, ...]


def forced_items(requests: Sequence[WorkloadRequest], prompts: Prompts) -> list[ForcedItem]:
    """Render all requests with their answers, in the form that the model's chat template accepts.

    Raises RunError where a prompt with its answer is longer than the model's context, and ModelError where the model's
    template cannot write them.
    """
    model, texts = prompts.model, dict[str, list[int]]()
    made = []
    for request in requests:
        if isinstance(request, TextRequest):
            ids = texts.get(request.text) or texts.setdefault(request.text, model.encode(request.text))
            item = _text_item(request, ids)
        else:
            item = chat_item(request, prompts)
        length = len(item.forced.prompt) + len(item.forced.answer)
        if model.context_length and length > model.context_length:
            raise RunError(
                f"{request.conversation} turn {request.turn} has {length:,} tokens with its answer, and {model.name} "
                f"reaches to {model.context_length:,}: write fewer turns or tokens, or use another model"
            )
        made.append(item)
    return made


def chat_item(request: WorkloadRequest, prompts: Prompts) -> ForcedItem:
    """Render the messages of a request and its reference: what the template adds for the reference is the answer."""
    if request.reference is None:
        raise WorkloadError(f"{request.conversation} turn {request.turn} has no reference to force")
    model = prompts.model
    prompt, whole = prompts.ids(request), prompts.ids(request, request.reference)
    # Some templates open an answer otherwise than they write one of the past: it begins where both part.
    shorter = min(len(prompt), len(whole))
    common = next((i for i in range(shorter) if prompt[i] != whole[i]), shorter)
    answer = without_early_end(whole[common:], model.eos)
    if not common or not answer:
        raise ModelError(
            f"the chat template of {model.name} writes nothing of the answer at {request.conversation} turn "
            f"{request.turn}; use a model whose template does"
        )
    spans = list(_spans(request, whole, common, prompts))
    places = _places(whole[: common + len(answer)], common, model)
    kinds = tuple(kind_of(start, stop, spans) for start, stop in places)
    return ForcedItem(request, ForcedAnswer(whole[:common], answer), kinds)


def _text_item(request: TextRequest, ids: Sequence[int]) -> ForcedItem:
    if len(ids) < 2:
        raise WorkloadError(f"{request.conversation} has {counted(len(ids), 'token')}; give a longer text")
    context, answer = request.cut(ids)
    return ForcedItem(request, ForcedAnswer(context, answer), ("prose",) * len(answer))


def _spans(
    request: WorkloadRequest,
    whole: Sequence[int],
    common: int,
    prompts: Prompts,
) -> Iterator[Span]:
    """Yield spans of names, arguments and the form of calls, as characters of the text of ``whole``.

    The template writes the same answer again with another name, and with other arguments: what is different in the
    text is the name, or the arguments.
    """
    reference = request.reference or {}
    calls = reference.get("tool_calls") or []
    model = prompts.model
    text = model.decode(whole)

    def changed(index: int, **parts: Any) -> tuple[int, int] | None:
        other = [*calls[:index], _with_function(calls[index], parts), *calls[index + 1 :]]
        return changed_part(text, model.decode(prompts.ids(request, {**reference, "tool_calls": other})))

    first = None
    for index, call in enumerate(calls):
        function = call["function"]
        name, arguments = function["name"], function["arguments"]
        values = _parsed(arguments)
        place = changed(index, name=_replacement(name))
        if place is None:
            raise ModelError(
                f"the chat template of {model.name} does not write tool calls, such as that of {name!r}: use a model "
                "whose template does"
            )
        first = place[0] if first is None else min(first, place[0])
        yield Span(NAME, *place)
        letter = _replacement(json.dumps(values, ensure_ascii=False))
        where = changed(index, arguments=json.dumps({letter: letter})) if values else None
        if where is not None:
            yield from argument_spans(text, *where, values if isinstance(values, Mapping) else {})
    if first is not None:
        # The form of calls begins behind the text that comes before them.
        content = reference.get("content") or ""
        begin = len(model.decode(whole[:common]))
        prose = content.strip() if isinstance(content, str) else ""
        at = text.find(prose, begin, first) if prose else -1
        yield Span(SYNTAX, at + len(prose) if at >= 0 else begin, len(text))


def _parsed(arguments: Any) -> Any:
    """Return arguments that are JSON text as a value; broken JSON, which templates write as it is, stays text."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except json.JSONDecodeError:
        return arguments


def _with_function(call: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], **parts}}


def _replacement(text: str) -> str:
    """Return a word of a letter that ``text`` does not hold, so that both differ from the first letter to the last."""
    return 3 * next((letter for letter in REPLACEMENTS if letter not in text), "§")


def _places(ids: Sequence[int], common: int, model: LoadedModel) -> list[tuple[int, int]]:
    """Return the characters of the text that each token behind the first ``common`` ones adds."""
    places = []
    anchor = max(0, common - 1)  # the token before decides about leading spaces
    before = model.decode(ids[anchor:common])
    offset = len(model.decode(ids[:common])) - len(before)
    for i in range(common, len(ids)):
        after = model.decode(ids[anchor : i + 1])
        # A character of several tokens is a replacement character until its last token: it belongs to all of them.
        start = min(len(before.rstrip("\ufffd")), len(after))
        places.append((offset + start, offset + len(after)))
        before = after
    return places
