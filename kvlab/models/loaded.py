"""A loaded model: network, tokenizer, and what its KV is keyed by."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from kvlab.errors import ModelError
from kvlab.models.evaluation import evaluate_arrays
from kvlab.models.folders import BUNDLED, bundled_path

CONTEXT = "max_position_embeddings"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer, and what its KV is keyed by.

    Every array of ``model`` is evaluated, so that any thread can run it: pass a model built by hand on the thread that
    built it.

    Attributes:
        fingerprint: covers the config, every weight and ``dequantized``, not the name.
        dtype: what the model computes its KV in.
        dequantized: its weights are quantized on disk and were expanded when they were loaded.
    """

    model: nn.Module
    tokenizer: Any  # mlx_lm's TokenizerWrapper
    name: str
    path: Path
    fingerprint: str
    dtype: str
    n_layers: int
    dequantized: bool = False

    def __post_init__(self) -> None:
        evaluate_arrays(self.model)

    @property
    def argument(self) -> str:
        """What `--model` takes to load it again: empty for the bundled one, a hub id, or a folder."""
        bundled = self.name == BUNDLED and self.path == bundled_path()
        return "" if bundled else self.name if "/" in self.name else str(self.path)

    @functools.cached_property
    def eos(self) -> frozenset[int]:
        """The token ids that end an answer."""
        return frozenset(self.tokenizer.eos_token_ids)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Tokens that the model has an embedding for; a token id beyond it would read other memory."""
        tables = (module for module in self.model.modules() if isinstance(module, nn.Embedding | nn.QuantizedEmbedding))
        return max(table.weight.shape[0] for table in tables)

    @functools.cached_property
    def context_length(self) -> int | None:
        """Tokens that the model's positions reach to, answer included; None where its config does not say."""
        config = self.path / "config.json"
        arguments = getattr(self.model, "args", None)
        known = json.loads(config.read_text()) if config.is_file() else getattr(arguments, "__dict__", {})
        return known.get(CONTEXT) or (known.get("text_config") or {}).get(CONTEXT)

    def encode(self, text: str) -> list[int]:
        """The token ids of ``text``, with no special token added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(list(ids))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        generation: bool = True,
    ) -> list[int]:
        """The token ids of an OpenAI conversation by the model's chat template.

        ``generation`` appends the opening of the assistant's answer. Raises ModelError when the model has no chat
        template, or when its template refuses the conversation.
        """
        if not self.tokenizer.has_chat_template:
            raise ModelError(f"model {self.name} has no chat template; use one that has, or pass token ids")
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    [for_template(message) for message in messages],
                    tools=list(tools) or None,
                    add_generation_prompt=generation,
                    tokenize=True,
                )
            )
        except Exception as error:  # templates are programs: jinja errors, KeyErrors and more come from the input
            why = first_line(error)
            raise ModelError(f"the chat template of {self.name} refuses this conversation: {why}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: tool arguments as a mapping, and never a content of None."""
    made = dict(message)
    if made.get("content") is None:
        made["content"] = ""
    if made.get("tool_calls"):
        made["tool_calls"] = [_call_for_template(call) for call in made["tool_calls"]]
    elif "tool_calls" in made:
        del made["tool_calls"]
    return made


def _call_for_template(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(json.JSONDecodeError):  # a model's malformed arguments are shown to it as they were
            function["arguments"] = json.loads(arguments or "{}")
    return {**call, "function": function} if "function" in call else function
