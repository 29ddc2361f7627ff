"""Where a prompt is cut, for models some of whose state cannot be cut at a token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

RECENT_BOUNDARIES = 4
"""Message boundaries at the end of a prompt that always get a checkpoint: there conversations go on, or fork."""

MIN_TOKENS_AFTER_CHECKPOINT = 32
"""Tokens behind the last cut that are computed anew rather than given a checkpoint of their own."""


def checkpoint_segments(context: Sequence[int], start: int, ends: Collection[int], every: int) -> list[list[int]]:
    """Cut the tokens from ``start`` on at message boundaries and every ``every`` tokens.

    A message ends with one of the tokens ``ends``. Of many boundaries the first (behind the system prompt, where other
    conversations fork) and the last few count. The prompt's end is a cut only where none is near: what follows the last
    message, the opening of the answer, is computed anew sooner than stored.

    Chunks begin at cuts, and in 16 bits another chunking gives other last bits: so a model with such state is cut in
    the same places whether or not anything is kept there.
    """
    end = len(context)
    boundaries = [i + 1 for i in range(start, end - 1) if context[i] in ends]
    cuts = {*boundaries[-RECENT_BOUNDARIES:], *range(start // every * every + every, end, every)}
    if boundaries and not start:
        cuts.add(boundaries[0])
    if end - 1 - max([start, *cuts]) >= MIN_TOKENS_AFTER_CHECKPOINT:
        cuts.add(end - 1)
    marks = sorted({start, *cuts, end})
    return [list(context[a:b]) for a, b in zip(marks, marks[1:], strict=False)]
