"""Renders conversations with the bundled chat template, as transformers does, without loading transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE = Path(__file__).with_name("chat_template.jinja")

_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string(TEMPLATE.read_text())


def render(messages: Iterable[dict[str, Any]], tools: Iterable[dict[str, Any]] = (), prompt: bool = False) -> str:
    """The text of a conversation; with `prompt`, followed by the header of the next assistant message."""
    return _template.render(messages=list(messages), tools=list(tools) or None, add_generation_prompt=prompt)
