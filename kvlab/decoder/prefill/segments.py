"""Cut prompts into segments at checkpoints, for models with layers whose state cannot be cut at a token."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

RECENT_BOUNDARIES = 4
"""Last message boundaries of a prompt, which always get a checkpoint: conversations continue or fork there."""

MIN_TOKENS_AFTER_CHECKPOINT = 32
"""Fewest tokens behind the last cut that get a checkpoint of their own; fewer are computed again."""


def checkpoint_segments(context: Sequence[int], start: int, ends: Collection[int], every: int) -> list[list[int]]:
    """Cut the tokens from ``start`` on at message boundaries and every ``every`` tokens.

    A message ends with one of the tokens ``ends``. Of all boundaries, the first (behind the system prompt, where other
    conversations fork) and the last few are cuts. The prompt's end is a cut only where no other is near, because the
    opening of the answer, which follows the last message, is computed faster than stored.

    Chunks begin at cuts, and another chunking rounds differently in 16 bits. So the prompts of such a model are cut in
    the same places whether or not checkpoints are stored.
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


def checkpoints_of(segments: Sequence[Sequence[int]], start: int) -> tuple[int, ...]:
    """Return the token counts at which a prefill of ``segments`` behind ``start`` tokens keeps a checkpoint.

    The last token of a prompt is computed by itself, for its logits, so that the last one is before it.
    """
    ends = list(itertools.accumulate((len(segment) for segment in segments), initial=start))
    ends[-1] -= 1
    return tuple(sorted({end for end in ends if end > start}))


def cut_at(segments: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Cut the segment that goes past the first ``tokens`` of them all, so that a chunk ends exactly there."""
    made: list[list[int]] = []
    for segment in segments:
        inside = min(max(0, tokens), len(segment))
        made += [list(part) for part in (segment[:inside], segment[inside:]) if part]
        tokens -= len(segment)
    return made
