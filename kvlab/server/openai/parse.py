"""From a checked request body to an :class:`GenerationRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.prompt_cache import RenderedPrompt
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.sampling import Sampling
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.openai.types import ChatRequest, CompletionRequest, NamedTool, Sampled
from kvlab.server.settings import Settings

MOST_STOPS = 16
RESERVED = ("messages", "tools", "add_generation_prompt", "tokenize", "conversation", "return_dict", "chat_template")


def ask_chat(body: ChatRequest, model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """Render and check a chat request. Raises ApiError 400."""
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    call, callable_tools = chosen_tools(body.tool_choice, tools)
    schema = _schema(body)
    if schema is not None and call == "required":
        raise ApiError(400, "a required tool call leaves no room for response_format; send one of them")
    ask = make_ask(
        model,
        settings,
        messages,
        tools if call != "none" else [],
        template_options=_template_options(
            body.chat_template_kwargs, constrained=schema is not None or call == "required"
        ),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        sampling=sampling_of(body, model),
        n=body.n or 1,
        stop=stops(body.stop),
        call="none" if schema is not None else call,
        tools=tuple(callable_tools),
        many=body.parallel_tool_calls is not False,
        schema=schema,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return [ask]


def make_ask(
    model: ServedModel,
    settings: Settings,
    messages: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    *,
    template_options: Mapping[str, Any],
    max_tokens: int | None,
    **rest: Any,
) -> GenerationRequest:
    """An Ask for a conversation, with the prompt rendered and the room checked. Raises ApiError 400."""
    options = dict(template_options)
    if not model.loaded.tokenizer.has_thinking:
        options.pop("enable_thinking", None)
    prompt = model.prompts.render(messages, shown, options)
    room = model.check_room(len(prompt.ids), max_tokens, settings.max_tokens)
    return GenerationRequest(prompt=prompt, max_tokens=room, **rest)


def ask_completions(body: CompletionRequest, model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """One Ask a prompt of a plain completion. Raises ApiError 400."""
    if body.suffix:
        raise ApiError(400, "suffix is not supported; put what comes before into prompt", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is not supported beyond n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "logprobs of the prompt are not supported; leave echo or logprobs out", param="echo")
    asks: list[GenerationRequest] = []
    for ids in _prompts(body.prompt, model):
        if not ids:
            raise ApiError(400, "the prompt is empty: send at least one token", param="prompt")
        if min(ids) < 0 or max(ids) >= model.loaded.vocab_size:
            raise ApiError(400, f"token ids go from 0 to {model.loaded.vocab_size - 1}", param="prompt")
        asks.append(
            GenerationRequest(
                prompt=RenderedPrompt(ids, (), ()),
                max_tokens=model.check_room(len(ids), body.max_tokens, 16),  # OpenAI's default for this endpoint
                sampling=sampling_of(body, model),
                n=body.n or 1,
                stop=stops(body.stop),
                logprobs=body.logprobs,
                raw=True,
                first=len(asks) * (body.n or 1),
            )
        )
    if not asks:
        raise ApiError(400, "the prompt is empty: send at least one", param="prompt")
    return asks


def chosen_tools(choice: str | NamedTool | None, tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """``none``, ``auto`` or ``required``, and the tools that may be called. Raises ApiError 400."""
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have one name", param="tools")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
        return "none", []
    if isinstance(choice, NamedTool):
        chosen = [tool for tool in tools if tool["function"]["name"] == choice.function.name]
        if not chosen:
            raise ApiError(400, f"no tool {choice.function.name!r}; there is {', '.join(names)}", param="tool_choice")
        return "required", chosen
    return choice or "auto", tools


def sampling_of(body: Sampled, model: ServedModel) -> Sampling:
    """How tokens are drawn; what the request leaves open is as the model's authors recommend."""
    base = model.defaults

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        temperature=given(body.temperature, base.temperature),
        top_p=given(body.top_p, base.top_p),
        top_k=given(body.top_k, base.top_k),
        min_p=given(body.min_p, 0.0),
        seed=body.seed,
        presence=given(body.presence_penalty, 0.0),
        frequency=given(body.frequency_penalty, 0.0),
        repetition=given(body.repetition_penalty, 1.0),
        bias=_bias(body.logit_bias or {}, model.loaded.vocab_size),
    )


def stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings, checked. Raises ApiError 400."""
    words = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(words) > MOST_STOPS:
        raise ApiError(400, f"at most {MOST_STOPS} stop strings", param="stop")
    return tuple(word for word in words if word)


def _schema(body: ChatRequest) -> Mapping[str, Any] | None:
    form = body.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None:
        raise ApiError(400, "response_format json_schema needs a json_schema", param="response_format")
    return form.json_schema.schema_


def _template_options(given: Mapping[str, Any] | None, *, constrained: bool) -> dict[str, Any]:
    options = dict(given or {})
    taken = [name for name in RESERVED if name in options]
    if taken:
        raise ApiError(400, f"chat_template_kwargs cannot set {', '.join(taken)}", param="chat_template_kwargs")
    if constrained:  # a grammar from the first token on leaves no room for thinking, unless the client asks for it
        options.setdefault("enable_thinking", False)
    return options


def _bias(given: Mapping[str, float], size: int) -> tuple[tuple[int, float], ...]:
    try:
        bias = tuple((int(token), value) for token, value in given.items())
    except ValueError as error:
        raise ApiError(400, "logit_bias is keyed by token ids", param="logit_bias") from error
    if any(not 0 <= token < size for token, _ in bias):
        raise ApiError(400, f"token ids go from 0 to {size - 1}", param="logit_bias")
    return bias


def _prompts(prompt: str | list[str] | list[int] | list[list[int]], model: ServedModel) -> list[list[int]]:
    if isinstance(prompt, str):
        return [model.prompts.encode(prompt)]
    if prompt and all(isinstance(item, int) for item in prompt):
        return [list(prompt)]  # type: ignore[arg-type]
    return [model.prompts.encode(item) if isinstance(item, str) else list(item) for item in prompt]  # type: ignore[arg-type]
