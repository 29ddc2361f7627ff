"""Request bodies of Anthropic's protocol. Unknown fields are ignored, as that protocol's gateways do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kvlab.server.generation.tool_shapes import anthropic_tools
from kvlab.server.request_body import RequestBody, TokenLimit, ToolChoiceField, TopK, TopP


class ContentBlock(RequestBody):
    """One content block: text, document, tool_use, tool_result or thinking; others are refused when it is rendered."""

    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = Field(default_factory=dict)
    tool_use_id: str = ""
    content: str | list[dict[str, Any]] | None = None
    source: dict[str, Any] | None = None
    is_error: bool | None = None


class InputMessage(RequestBody):
    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class InputTool(RequestBody):
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class Thinking(RequestBody):
    type: str = "disabled"


class CountRequest(RequestBody):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[ContentBlock] | None = None
    tools: Annotated[list[InputTool] | None, BeforeValidator(anthropic_tools)] = None
    tool_choice: ToolChoiceField = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: TokenLimit = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP = None
    top_k: TopK = None
    stop_sequences: list[str] | None = None
