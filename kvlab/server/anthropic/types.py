"""Request bodies of Anthropic's protocol. Unknown fields are ignored, as that protocol's gateways do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvlab.server import limits
from kvlab.server.generation.tool_shapes import anthropic_tools
from kvlab.server.request_body import RequestBody, TokenLimit, ToolChoiceField, TopK, TopP

Name = Annotated[str, Field(max_length=limits.MAX_NAME_CHARS)]


class ContentBlock(RequestBody):
    """One content block: text, document, tool_use, tool_result or thinking; others are refused when it is rendered."""

    type: str
    text: str = ""
    thinking: str = ""
    id: Name = ""
    name: Name = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: Name = ""
    content: (
        str | Annotated[list[dict[str, Any]], Field(max_length=limits.MAX_CONTENT_PARTS, fail_fast=True)] | None
    ) = None
    source: dict[str, Any] | None = None
    is_error: bool | None = None


ContentBlocks = Annotated[list[ContentBlock], Field(max_length=limits.MAX_CONTENT_PARTS, fail_fast=True)]


class InputMessage(RequestBody):
    role: Literal["user", "assistant", "system"]
    content: str | ContentBlocks


class InputTool(RequestBody):
    name: str = Field(min_length=1, max_length=limits.MAX_NAME_CHARS)
    description: Annotated[str, Field(max_length=limits.MAX_TOOL_DESCRIPTION_CHARS)] | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class Thinking(RequestBody):
    type: str = "disabled"


class CountRequest(RequestBody):
    """POST /v1/messages/count_tokens."""

    model: Name | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=limits.MAX_MESSAGES, fail_fast=True)]
    system: str | ContentBlocks | None = None
    tools: Annotated[
        Annotated[list[InputTool], Field(max_length=limits.MAX_TOOLS, fail_fast=True)] | None,
        BeforeValidator(anthropic_tools),
    ] = None
    tool_choice: ToolChoiceField = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: TokenLimit = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP = None
    top_k: TopK = None
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(max_length=limits.MAX_STOP_CHARS)]],
            Field(max_length=limits.MAX_STOP_STRINGS, fail_fast=True),
        ]
        | None
    ) = None
