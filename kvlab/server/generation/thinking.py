"""The texts around a model's thinking, by its family."""

from __future__ import annotations

from typing import Any

from kvlab.server.structured.tool_families.choose import template_text

FAMILIES = (
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
)
"""Markers that mlx-lm does not look for, or only where each is one token."""


def thinking_markers(tokenizer: Any) -> tuple[str, str] | None:
    """Return the texts that begin and end thinking; None for a model that does not think.

    Markers count where both are in the chat template, or both are tokens of the vocabulary.
    """
    if tokenizer.has_thinking:
        return tokenizer.think_start, tokenizer.think_end
    template = template_text(tokenizer)
    vocabulary = tokenizer.get_vocab()
    for start, end in FAMILIES:
        if (start in template and end in template) or (start in vocabulary and end in vocabulary):
            return start, end
    return None
