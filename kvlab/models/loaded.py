"""A loaded model: network, tokenizer, and what its KV is keyed by."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.nn as nn

from kvlab.errors import ModelError
from kvlab.models.evaluation import evaluate_arrays
from kvlab.models.fingerprints import Fingerprints
from kvlab.models.folders import BUNDLED, bundled_path, models_path
from kvlab.models.watch import ModelWatch

CONTEXT = "max_position_embeddings"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its tokenizer.

    Every array of ``model`` is evaluated, so that any thread can run it: pass a model built by hand on the thread that
    built it.

    Attributes:
        name: that of the folder, of the file or of the hub; with an adapter, ``name+adapter``.
        path: the folder of the model, or its GGUF file.
        dtype: what the model computes its KV in.
        dequantized: its weights are quantized on disk and were expanded when they were loaded.
        adapter: the folder of the adapter that was loaded with it; None without.
    """

    model: nn.Module
    tokenizer: Any  # mlx_lm's TokenizerWrapper
    name: str
    path: Path
    dtype: str
    n_layers: int
    dequantized: bool = False
    adapter: Path | None = None
    _fingerprints: Fingerprints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        evaluate_arrays(self.model)
        object.__setattr__(self, "_fingerprints", Fingerprints(self.model))

    @property
    def fingerprint(self) -> str:
        """What the KV of the model is keyed by: see :class:`kvlab.models.fingerprints.Fingerprints`.

        It is that of the model as it is now: a layer that was changed, quantized, cast or given an adapter after
        loading gives another one. A model that is loaded again, in another process too, has the same.
        """
        return self._fingerprints.now()

    def watch(self) -> ModelWatch:
        """Return a watch that notices when the model is changed."""
        return ModelWatch(self._fingerprints)

    @property
    def argument(self) -> str:
        """What `--model` takes to load it again: empty for the bundled one, a name, a hub id, a folder or a file."""
        name = self.name.removesuffix(f"+{self.adapter.name}") if self.adapter else self.name
        bundled = name == BUNDLED and self.path == bundled_path()
        by_name = "/" in name or self.path == models_path() / name
        return "" if bundled else name if by_name else str(self.path)

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
