"""Chat templates in the styles of many model families, on the bundled model's tokenizer.

The templates are written for these tests, with the control tokens and the habits of each family: what they raise on,
how they read content, ids, arguments and thinking.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm import tokenizer_utils

from kvlab.models import LoadedModel, bundled_path
from kvlab.server import Settings
from kvlab.server.anthropic.parse import parse_messages
from kvlab.server.anthropic.types import MessagesRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.prompt_cache import PromptCache, RenderedPrompt
from kvlab.server.generation.sampling import Sampling
from kvlab.server.openai.parse import parse_chat
from kvlab.server.openai.types import ChatRequest

FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Family:
    """A style of templates. ``tokens``: its control tokens; ``ends``: those that end an answer."""

    name: str
    ends: tuple[str, ...]
    tokens: tuple[str, ...] = ()
    thinks: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def template(self) -> str:
        return (FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
FAMILIES = [
    Family("qwen2_5", ("<|im_end|>",), CHATML),
    Family("qwen3", ("<|im_end|>",), CHATML, thinks=True),
    Family("qwen3_coder", ("<|im_end|>",), CHATML),
    Family("llama3", ("<|eot_id|>",), LLAMA3),
    Family("llama4", ("<|eot|>",), ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>")),
    Family("mistral_v3", ("</s>",), MISTRAL),
    Family("mistral_v13", ("</s>",), (*MISTRAL, "[ARGS]", "[CALL_ID]", "[TOOL_CONTENT]", "[SYSTEM_PROMPT]")),
    Family("gemma2", ("<end_of_turn>",), ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    Family("gemma3", ("<end_of_turn>",), ("<bos>", "<start_of_turn>", "<end_of_turn>")),
    Family(
        "gpt_oss",
        ("<|return|>", "<|call|>"),
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    ),
    Family("deepseek_v3", ("<｜end▁of▁sentence｜>",), DEEPSEEK),
    Family("deepseek_r1", ("<｜end▁of▁sentence｜>",), DEEPSEEK, thinks=True),
    Family("glm4", ("<|user|>", "<|observation|>"), ("<|user|>", "<|assistant|>", "<|observation|>"), thinks=True),
    Family("phi4_mini", ("<|end|>", "<|endoftext|>"), ("<|user|>", "<|assistant|>", "<|end|>")),
    Family("hermes", ("<|im_end|>",), CHATML),
    Family("kimi_k2", ("<|im_end|>",), ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>")),
    Family("strict", ("<|im_end|>",), CHATML),
    Family("parts_only", ("<|im_end|>",), CHATML),
]


def write_model(family: Family, folder: Path, *, computes: bool = False) -> Path:
    """Write the bundled model with the template of ``family``, its control tokens added to the vocabulary.

    With ``computes`` these are text, as the model has no embedding for more tokens; the markers of thinking replace
    two others.
    """
    shutil.copytree(bundled_path(), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"]: token["id"] for token in content["added_tokens"]}
    free = max([*content["model"]["vocab"].values(), *known.values()]) + 1
    thinking = ("<think>", "</think>") if family.thinks else ()
    if computes:
        replaced = dict(zip(("<tools>", "</tools>"), thinking, strict=False))
        for token in content["added_tokens"]:
            token["content"] = replaced.get(token["content"], token["content"])
    for text in () if computes else (*family.tokens, *family.ends, *thinking):
        if text not in known:
            known[text], free = free, free + 1
            flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized")}
            content["added_tokens"].append(
                {"id": known[text], "content": text, "special": text not in thinking, **flags}
            )
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def with_template(bundled: LoadedModel, family: Family, folder: Path) -> LoadedModel:
    """Return the bundled model with tokenizer and template of ``family``; it must not compute the added tokens."""
    tokenizer = tokenizer_utils.load(write_model(family, folder))
    tokenizer.eos_token_ids = {tokenizer.convert_tokens_to_ids(end) for end in family.ends}
    return dataclasses.replace(bundled, tokenizer=tokenizer, name=family.name, path=folder)


class TemplateModel:
    """What requests are rendered with: a model that does not compute."""

    def __init__(self, loaded: LoadedModel, context: int = 32768) -> None:
        self.loaded, self.name, self.context = loaded, loaded.name, context
        self.prompts = PromptCache(loaded, context=context)
        self.defaults = Sampling()

    def limit_tokens(self, prompt_tokens: int, max_tokens: int | None, default: int) -> int:
        if prompt_tokens >= self.context:
            raise ApiError(400, "the prompt fills the context")
        return min(max_tokens or default, self.context - prompt_tokens)

    def forget(self) -> TemplateModel:
        """The same model after a restart."""
        return TemplateModel(self.loaded, self.context)


def from_openai(
    model: Any, messages: Sequence[Any], tools: Any = None, tenant: str = "", **more: Any
) -> RenderedPrompt:
    """The prompt of a request to OpenAI's endpoint."""
    body = ChatRequest.model_validate({"messages": messages, "tools": tools, **more})
    [request] = parse_chat(body, model, Settings(), tenant)
    return request.prompt


def from_anthropic(
    model: Any, messages: Sequence[Any], tools: Any = None, tenant: str = "", **more: Any
) -> RenderedPrompt:
    """The prompt of a request to Anthropic's endpoint; ``tools`` may be written as OpenAI's. Thinks, as the other."""
    functions = [tool["function"] for tool in tools or [] if "function" in tool]
    offered = [{"name": f["name"], "description": f["description"], "input_schema": f["parameters"]} for f in functions]
    offered = offered or tools
    given = {"messages": messages, "tools": offered or None, "max_tokens": 64, "thinking": {"type": "enabled"}, **more}
    [request] = parse_messages(MessagesRequest.model_validate(given), model, Settings(), tenant)
    return request.prompt
