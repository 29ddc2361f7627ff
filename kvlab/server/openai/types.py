"""Request bodies of OpenAI's protocol. Unknown fields are ignored, as that protocol does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kvlab.server import limits
from kvlab.server.generation.tool_shapes import openai_tools
from kvlab.server.request_body import Repetition, RequestBody, Seed, TokenLimit, ToolChoiceField, TopK, TopP

Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _bounded_bias(given: Any) -> Any:
    # Before its items are checked: each wrong one would become an error of its own.
    if isinstance(given, dict) and len(given) > limits.MAX_LOGIT_BIAS:
        raise ValueError(f"at most {limits.MAX_LOGIT_BIAS} tokens can be biased")
    return given


LogitBias = Annotated[dict[str, Bias], Field(max_length=limits.MAX_LOGIT_BIAS), BeforeValidator(_bounded_bias)]
Name = Annotated[str, Field(max_length=limits.MAX_NAME_CHARS)]
StopString = Annotated[str, Field(max_length=limits.MAX_STOP_CHARS)]
Stop = StopString | Annotated[list[StopString], Field(max_length=limits.MAX_STOP_STRINGS, fail_fast=True)] | None
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Prompts = Annotated[list[str], Field(max_length=limits.MAX_PROMPTS, fail_fast=True)]
PromptsOfIds = Annotated[list[TokenIds], Field(max_length=limits.MAX_PROMPTS, fail_fast=True)]


class Function(RequestBody):
    name: str = Field(min_length=1, max_length=limits.MAX_NAME_CHARS)
    description: Annotated[str, Field(max_length=limits.MAX_TOOL_DESCRIPTION_CHARS)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestBody):
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One message. Fields beyond these are given to the chat template."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        str | Annotated[list[dict[str, Any]], Field(max_length=limits.MAX_CONTENT_PARTS, fail_fast=True)] | None
    ) = None
    name: Name | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=limits.MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: Name | None = None


class JsonSchema(RequestBody):
    name: Name = "answer"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(RequestBody):
    include_usage: bool = False


class SamplingOptions(RequestBody):
    """Fields that chat and plain completions share. None stands for the recommendation of the model's authors."""

    model: Name | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition = None
    logit_bias: LogitBias | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = None
    max_tokens: TokenLimit = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatRequest(SamplingOptions):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: TokenLimit = None
    tools: Annotated[
        Annotated[list[Tool], Field(max_length=limits.MAX_TOOLS, fail_fast=True)] | None, BeforeValidator(openai_tools)
    ] = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=limits.MAX_TEMPLATE_OPTIONS)] | None = None


class CompletionRequest(SamplingOptions):
    """POST /v1/completions."""

    prompt: str | Prompts | TokenIds | PromptsOfIds
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
