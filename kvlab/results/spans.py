"""The parts of a prompt that a map of evictions marks, kept in a recorder's provenance by conversation and turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SPANS = "spans"
"""The key in a recorder's provenance."""
Span = tuple[int, int]
"""Token positions, half-open."""


@dataclass(frozen=True)
class Spans:
    """Token positions in a prompt of so many tokens: of what is asked, and of what the answer needs (its needles)."""

    prompt_tokens: int
    question: Span | None
    needles: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        return {"prompt_tokens": self.prompt_tokens, "question": self.question, "needles": list(self.needles)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Spans:
        """Build spans from the JSON of `to_json`."""
        question = values["question"]
        needles = tuple((start, stop) for start, stop in values["needles"])
        return cls(values["prompt_tokens"], (question[0], question[1]) if question else None, needles)


def spans_key(conversation: str, turn: int) -> str:
    """Return the name of a request's spans."""
    return f"{conversation}/{turn}"


def spans_of(provenance: Mapping[str, Any], conversation: str, turn: int) -> Spans | None:
    """Return the spans of a request that a recorder's provenance has; None where it has none."""
    found = (provenance.get(SPANS) or {}).get(spans_key(conversation, turn))
    return None if found is None else Spans.from_json(found)
