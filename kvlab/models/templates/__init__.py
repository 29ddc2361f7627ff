"""What chat templates accept, and conversations in a form that each of them does.

``dialect`` finds out by rendering what a template accepts, ``messages`` adapts a conversation to it, ``calls`` numbers
calls and ``tools_as_text`` writes tools and calls as text for a template that shows none.
"""

from kvlab.models.templates.calls import CallNumbers
from kvlab.models.templates.dialect import TemplateDialect, call_id, probe
from kvlab.models.templates.fields import REASONING_FIELDS, TemplateMessage
from kvlab.models.templates.messages import Tools, adapt
from kvlab.models.templates.tools_as_text import call_text

__all__ = [
    "REASONING_FIELDS", "CallNumbers", "TemplateDialect", "TemplateMessage", "Tools", "adapt", "call_id", "call_text",
    "probe",
]  # fmt: skip
