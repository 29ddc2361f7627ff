"""Calls of gpt-oss: messages of the assistant to a function, in a channel of their own."""

from __future__ import annotations

from kvlab.server.structured.tool_families.headed_calls import HeadedCalls
from kvlab.server.structured.tool_formats import Literal

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
RECIPIENT = r"\bto=functions\.(?P<name>[^\s<]+)"


class HarmonyCalls(HeadedCalls):
    """A message whose header names a function as its recipient; one call in an answer.

    The header's other parts may stand in any order: models write the recipient before the channel or behind it.
    """

    def __init__(self) -> None:
        header = f"{CHANNEL}commentary to=functions.{{name}} <|constrain|>json{MESSAGE}"
        pattern = rf"(?:(?!<\|message\|>)[\s\S])*?{RECIPIENT}(?:(?!<\|message\|>)[\s\S])*<\|message\|>"
        super().__init__("harmony", "", header=header, header_pattern=pattern, closer=CALL)
        self._closer = ""  # it ends the answer, as an end token does: it is read, and not written by a grammar
        self.trigger = f"{CHANNEL}commentary to=functions."

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        return "any"

    def answer_start(self, literal: Literal) -> str:
        return f"{literal(CHANNEL + 'final' + MESSAGE)}"
