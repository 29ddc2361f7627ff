"""Limits on everything whose size a client chooses, beside those that :class:`~kvlab.server.settings.Settings` has.

``docs/serving.md`` shows them as a table.
"""

from __future__ import annotations

MAX_HEADER_BYTES = 32_768
"""Request line and headers together; a key, a path and a query string are bounded by it."""
MAX_KEY_CHARS = 4_096
MAX_SMALL_BODY_BYTES = 65_536
"""Bodies of paths that take no prompt; others up to this size do not count against ``Settings.body_memory``."""
MAX_JSON_DEPTH = 128
MAX_JSON_VALUES = 200_000
"""Values of all lists and objects of one body together. Bytes cost little to parse; values and their objects do."""
MAX_EXACT_ESCAPES = 100_000
"""Backslashes in a body whose integers need Python's own, slower JSON parser: those of more than 18 digits."""

MAX_MESSAGES = 10_000
MAX_CONTENT_PARTS = 10_000
MAX_TOOLS = 1_024
MAX_TOOL_DESCRIPTION_CHARS = 100_000
MAX_TOOL_CALLS = 1_024
"""Calls in one assistant message of the history."""
MAX_NAME_CHARS = 256
"""Names of models, tools, schemas and authors, and ids of calls."""
MAX_TEMPLATE_OPTIONS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1_000
MAX_LOGIT_BIAS = 1_024
MAX_CHOICES = 16
"""``n``: answers to one prompt."""
MAX_PROMPTS = 256
"""Prompts of one plain completion."""
MAX_TOP_LOGPROBS = 20
MAX_ERROR_CHARS = 2_000
"""What an error says, with what it quotes of the request."""
MAX_LOGGED_CHARS = 200
"""What a client wrote, such as a path, is cut to this length in the log."""

MAX_CHARS_PER_TOKEN = 16
"""A prompt may have this many characters for each token of the model's context. Text has 3 to 5, source code fewer."""
MAX_UNSENT_TOKENS = 16_384
"""Tokens that one answer may have waiting for its client; with more, it is cancelled."""
MAX_UNSENT_EVENTS = 64
"""Events of a request with several answers that wait for its client before its answers wait too."""
MAX_FOLLOWERS = 32
"""Clients that follow ``/kvlab/events``: each keeps a connection."""
RECENT_ANSWERS_BYTES = 32_000_000
"""Memory for the tokens of answers whose KV can still be saved by id."""
