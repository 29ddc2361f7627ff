"""Messages as chat templates read them."""

from __future__ import annotations

from typing import Any

TemplateMessage = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names that clients and servers give to the thinking of an answer; the first is the canonical one."""
