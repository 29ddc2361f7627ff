"""What other servers' paged caches match and store: whole blocks, whole tails, prompts without the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kvlab.errors import ModelError
from kvlab.models import LoadedModel
from kvlab.policies import Paged
from kvlab.store import Match, Namespace, Store

TRIAL_MESSAGES = [{"role": "user", "content": "Hello"}]


def match_whole_pieces(
    store: Store, space: Namespace, context: Sequence[int], limit: int, reuse: Paged, *, checkpoint: bool
) -> Match:
    """Find the longest prefix of ``context`` in pieces that are used whole; its blocks stay as those of any match.

    Pieces are full blocks, and under ``match=tail`` a stored tail behind them. The last of ``limit`` tokens is left out
    where they are all found. Where the model needs a checkpoint it lies at the end of such a piece; a context that is
    found wholly has none under ``match=block``, because its last token must be computed.
    """
    seen = store.match(space, context)
    store.release(seen)
    whole = 0
    for piece in seen.pieces:
        if piece.used < piece.length or (piece.length < reuse.block and reuse.match == "block"):
            break
        whole += piece.used
    if checkpoint and reuse.match == "block" and whole == len(context):
        whole = 0
    tokens = whole if checkpoint else min(whole, limit)
    found = store.match(space, context[:tokens], checkpoint=checkpoint)
    while checkpoint and reuse.match == "block" and found.tokens % reuse.block:
        store.release(found)
        tokens = found.tokens // reuse.block * reuse.block
        found = store.match(space, context[:tokens], checkpoint=True)
    if found.tokens >= limit:
        return found
    reason = "no_checkpoint" if found.tokens < tokens else seen.miss or "never_seen"
    return replace(found, miss=reason)


def match_whole_blocks(
    store: Store, space: Namespace, context: Sequence[int], limit: int, *, checkpoint: bool
) -> Match:
    """Find the longest prefix of the first ``limit`` tokens in full blocks, of which no part can be used."""
    block = space.block
    found = store.match(space, context[: limit // block * block], checkpoint=checkpoint)
    whole = found.tokens // block * block
    if whole == found.tokens:
        return found
    store.release(found)
    return replace(store.match(space, context[:whole], checkpoint=checkpoint), miss=found.miss)


def tokens_to_store(reuse: Paged, tokens: int, prompt: Sequence[int], opening: Sequence[int]) -> int:
    """Return how many of a sequence's first ``tokens`` are stored.

    Args:
        prompt: the tokens of the request's prompt.
        opening: the tokens with which the chat template opens an answer.
    """
    if not reuse.reply:
        tokens = min(tokens, len(prompt))
    if not reuse.opening:
        has_opening = bool(opening) and list(prompt[-len(opening) :]) == list(opening)
        tokens = min(tokens, len(prompt) - (len(opening) if has_opening else 0) - 1)
    tokens = max(0, tokens)
    return tokens // reuse.block * reuse.block if reuse.match == "block" else tokens


def opening_of_answers(loaded: LoadedModel) -> list[int]:
    """Return the tokens that the chat template puts behind a conversation; none where the model has no template."""
    try:
        with_opening = loaded.render(TRIAL_MESSAGES)
        without = loaded.render(TRIAL_MESSAGES, generation=False)
    except ModelError:
        return []
    return with_opening[len(without) :] if with_opening[: len(without)] == without else []
