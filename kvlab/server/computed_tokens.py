"""Why prompt tokens were computed, in the words of counters and of the dashboard."""

from __future__ import annotations

from kvlab.decoder import Completion

NEW, LAST, NO_REUSE = "new", "last_token", "no_reuse"
NEVER_SEEN = "never_seen"


def reason_for_computing(completion: Completion) -> str:
    """Return why the tokens behind the cached ones were computed.

    That of the store where something was lost or is another text (``evicted``, ``diverged_at``, ...); ``never_seen``
    for a prompt of which nothing is known; ``new`` for what follows a cached prefix for the first time, as each turn of
    a conversation does; ``last_token`` where all tokens were cached that can be; ``no_reuse`` where the policy reuses
    none: it has no reuse, or its scorer reads the queries of the whole prompt.
    """
    reason = completion.miss.partition("=")[0]
    if not reason:
        return LAST if completion.cached_tokens else NO_REUSE
    return NEW if reason == NEVER_SEEN and completion.cached_tokens else reason
