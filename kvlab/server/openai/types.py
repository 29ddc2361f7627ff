"""Request bodies of OpenAI's protocol. Unknown fields are ignored, as that protocol does."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kvlab.server.generation.tool_shapes import openai_tools
from kvlab.server.request_body import Repetition, RequestBody, Seed, TokenLimit, ToolChoiceField, TopK, TopP

Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = str | list[str] | None


class Function(RequestBody):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestBody):
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One message. Fields beyond these are given to the chat template."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JsonSchema(RequestBody):
    name: str = "answer"
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(RequestBody):
    include_usage: bool = False


class SamplingOptions(RequestBody):
    """Fields that chat and plain completions share. None stands for the recommendation of the model's authors."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Seed = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition = None
    logit_bias: dict[str, Bias] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    max_tokens: TokenLimit = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatRequest(SamplingOptions):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: TokenLimit = None
    tools: Annotated[list[Tool] | None, BeforeValidator(openai_tools)] = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingOptions):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
