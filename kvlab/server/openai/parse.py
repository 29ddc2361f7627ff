"""From a checked request body to a :class:`GenerationRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.parse import chat_request, stop_strings
from kvlab.server.generation.prompt_cache import RenderedPrompt
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.sampling import Sampling
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.generation.tool_choice import choose_tools
from kvlab.server.openai.types import ChatRequest, CompletionRequest, SamplingOptions
from kvlab.server.settings import Settings

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""
RESERVED_OPTIONS = (
    "messages", "tools", "add_generation_prompt", "tokenize", "conversation", "return_dict", "chat_template",
)  # fmt: skip
"""Arguments of a chat template that are not the client's to set."""


def parse_chat(body: ChatRequest, model: ServedModel, settings: Settings, tenant: str = "") -> list[GenerationRequest]:
    """Render and check a chat request of one client. Raises ApiError 400."""
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    tool_choice, callable_tools = choose_tools(body.tool_choice, tools)
    schema = _schema(body)
    if schema is not None and tool_choice == "required":
        raise ApiError(400, "a required tool call leaves no room for response_format; send one of them")
    constrained = schema is not None or tool_choice == "required"
    request = chat_request(
        model,
        settings,
        messages,
        tools if tool_choice != "none" else [],
        template_options=_template_options(body.chat_template_kwargs, constrained=constrained),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        tenant=tenant,
        sampling=parse_sampling(body, model),
        n=body.n or 1,
        stop=stop_strings(body.stop),
        tool_choice=tool_choice,
        tools=tuple(callable_tools),
        parallel_calls=body.parallel_tool_calls is not False,
        schema=schema,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return [request]


def parse_completions(body: CompletionRequest, model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """Check a plain completion and return one request for each of its prompts. Raises ApiError 400."""
    if body.suffix:
        raise ApiError(400, "suffix is not supported; put what comes before into prompt", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(400, "best_of is not supported beyond n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "logprobs of the prompt are not supported; leave echo or logprobs out", param="echo")
    requests: list[GenerationRequest] = []
    for ids in _prompts(body.prompt, model):
        if not ids:
            raise ApiError(400, "the prompt is empty: send at least one token", param="prompt")
        if min(ids) < 0 or max(ids) >= model.loaded.vocab_size:
            raise ApiError(400, f"token ids go from 0 to {model.loaded.vocab_size - 1}", param="prompt")
        requests.append(
            GenerationRequest(
                prompt=RenderedPrompt(ids, (), ()),
                max_tokens=model.limit_tokens(len(ids), body.max_tokens, COMPLETION_MAX_TOKENS),
                sampling=parse_sampling(body, model),
                n=body.n or 1,
                stop=stop_strings(body.stop),
                logprobs=body.logprobs,
                plain=True,
                first_index=len(requests) * (body.n or 1),
            )
        )
    if not requests:
        raise ApiError(400, "the prompt is empty: send at least one", param="prompt")
    return requests


def parse_sampling(body: SamplingOptions, model: ServedModel) -> Sampling:
    """Return the sampling of a request; fields that it leaves out are as the model's authors recommend."""
    base = model.defaults

    def or_default(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        temperature=or_default(body.temperature, base.temperature),
        top_p=or_default(body.top_p, base.top_p),
        top_k=or_default(body.top_k, base.top_k),
        min_p=or_default(body.min_p, 0.0),
        seed=body.seed,
        presence=or_default(body.presence_penalty, 0.0),
        frequency=or_default(body.frequency_penalty, 0.0),
        repetition=or_default(body.repetition_penalty, 1.0),
        bias=_logit_bias(body.logit_bias or {}, model.loaded.vocab_size),
    )


def _schema(body: ChatRequest) -> Mapping[str, Any] | None:
    response_format = body.response_format
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return {"type": "object"}
    if response_format.json_schema is None:
        raise ApiError(400, "response_format json_schema needs a json_schema", param="response_format")
    return response_format.json_schema.schema_


def _template_options(given: Mapping[str, Any] | None, *, constrained: bool) -> dict[str, Any]:
    options = dict(given or {})
    reserved = [name for name in RESERVED_OPTIONS if name in options]
    if reserved:
        raise ApiError(400, f"chat_template_kwargs cannot set {', '.join(reserved)}", param="chat_template_kwargs")
    if constrained:  # a grammar from the first token on excludes thinking, unless the client wants thinking
        options.setdefault("enable_thinking", False)
    return options


def _logit_bias(given: Mapping[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    try:
        bias = tuple((int(token), value) for token, value in given.items())
    except ValueError as error:
        raise ApiError(400, "logit_bias is keyed by token ids", param="logit_bias") from error
    if any(not 0 <= token < vocabulary for token, _ in bias):
        raise ApiError(400, f"token ids go from 0 to {vocabulary - 1}", param="logit_bias")
    return bias


def count_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> int:
    """Return the number of prompts of a plain completion; at least one, also where there is none to answer."""
    is_one = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt[:1])
    return 1 if is_one else len(prompt)


def _prompts(prompt: str | list[str] | list[int] | list[list[int]], model: ServedModel) -> list[list[int]]:
    if isinstance(prompt, str):
        return [model.prompts.encode(prompt)]
    if prompt and all(isinstance(item, int) for item in prompt):
        return [list(prompt)]  # type: ignore[arg-type]
    return [model.prompts.encode(item) if isinstance(item, str) else list(item) for item in prompt]  # type: ignore[arg-type]
