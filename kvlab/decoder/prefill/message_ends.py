"""Where the messages of a prompt end, and where caches of other servers cut it. Tokens only."""

from __future__ import annotations

from collections.abc import Collection, Sequence

TOKENS_BEFORE_END = 4
"""Tokens between the last checkpoint of a prompt and its end: the opening of an answer, which a template may change."""


def message_ends(context: Sequence[int], ends: Collection[int]) -> list[int]:
    """Return the token counts behind each message of a prompt; ``ends`` are the tokens that end one."""
    return [i + 1 for i, token in enumerate(context[:-1]) if token in ends]


def slot_checkpoints(
    context: Sequence[int],
    start: int,
    ends: Collection[int],
    *,
    spacing: int,
    ubatch: int,
    before: int = 0,
    opening: int = 0,
) -> list[int]:
    """Return the token counts at which llama.cpp's server (b11434) keeps a checkpoint, from ``start`` on, ascending.

    4 tokens before the end, ``ubatch`` tokens before that, before the words of the last message, and before those of
    messages that are more than ``spacing`` tokens from the checkpoint before. Deviation: the server knows which
    messages are a user's.

    Args:
        before: tokens at the newest checkpoint that there is.
        opening: tokens between the end of a message and the words of the next.
    """
    last = len(context) - TOKENS_BEFORE_END
    found = {at for at in (last - ubatch, last) if at > start}
    boundaries = [at + opening for at in message_ends(context, ends)]
    if len(boundaries) > 1 and start < boundaries[-2] < last:
        found.add(boundaries[-2])
    for at in boundaries:
        if start < at < last and at - before > spacing:
            found.add(at)
            before = at
    return sorted(found)


def cut_at_counts(context: Sequence[int], start: int, counts: Collection[int]) -> list[list[int]]:
    """Cut the tokens from ``start`` on at these token counts; those outside are left out."""
    marks = sorted({start, *(at for at in counts if start < at < len(context)), len(context)})
    return [list(context[a:b]) for a, b in zip(marks, marks[1:], strict=False)]
