"""The tokens of a sequence as text, coloured by what became of their KV. Knows frames and strings only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
import polars as pl

KEPT, SHARED, RESTORED, EVICTED = "kept", "shared", "restored", "evicted"

# Grounds that let the page through, under the page's own ink: they read the same on a light page and on a dark one.
# The lines tell them apart for the colour-blind, to whom blue and green, or green and red, are one ground.
STYLES = {
    KEPT: "",
    SHARED: "background:rgba(58,123,213,.36);border-top:2px solid rgb(58,123,213)",
    RESTORED: "background:rgba(28,164,118,.36);border-top:2px dotted rgb(28,164,118)",
    EVICTED: "background:rgba(214,69,56,.72);text-decoration:line-through",
}
MEANINGS = {
    KEPT: "computed by this request, still in the cache",
    SHARED: "shared with another live sequence",
    RESTORED: "restored from KV at rest",
    EVICTED: "evicted: nothing attends to it any more",
}
# Where pages strip styles, the elements still tell the states apart.
_ELEMENTS = {KEPT: "span", SHARED: "b", RESTORED: "i", EVICTED: "s"}
_CHIP = "border-radius:3px;font-weight:inherit;font-style:normal"
_PAGE = (
    "font:13px/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;"
    "max-width:920px;max-height:480px;overflow-y:auto;padding:10px 14px;border:1px solid #8886;border-radius:8px"
)
SHADES = 4  # how many shades stand for "gone from some of the heads"


@dataclass(frozen=True)
class TokenState:
    """The state of one token, whether it was generated, and the share of layers and heads that evicted it."""

    state: str
    generated: bool
    gone: float


def token_states(
    length: int,
    prompt: int,
    evicted: pl.DataFrame,
    *,
    shared: int = 0,
    cached: int = 0,
    step: int | None = None,
    heads: int = 1,
) -> list[TokenState]:
    """Return the states of the first ``length`` tokens at a decode step (None: the last).

    Args:
        prompt: how many of them are the prompt.
        evicted: ``layer``, ``head``, ``position``, ``step`` of what left, of the layers and heads that are looked at.
        shared, cached: leading tokens that were shared, and that were not recomputed.
        heads: how many heads, over all layers, are looked at.
    """
    gone = np.zeros(length)
    found = evicted if step is None else evicted.filter(pl.col("step") <= step)
    counts = found.select("layer", "head", "position").unique().group_by("position").len()
    for position, count in counts.filter(pl.col("position") < length).iter_rows():
        gone[position] = count / heads
    made = []
    for i in range(length):
        base = SHARED if i < shared else RESTORED if i < cached else KEPT
        made.append(TokenState(EVICTED if gone[i] >= 1 else base, i >= prompt, min(1.0, gone[i])))
    return made


def tokens_html(texts: Sequence[str], states: Sequence[TokenState], *, title: str = "") -> str:
    """Return the text of the tokens, coloured by state, under a legend with counts. Generated tokens are underlined."""
    parts = []
    index = 0
    for look, run in groupby(states, key=_look):
        size = len(list(run))
        parts.append(_chip("".join(texts[index : index + size]), *look))
        index += size
    head = f"<div style='font-weight:600;margin-bottom:4px'>{escape(title)}</div>" if title else ""
    page = f"<div style='{_PAGE}'>{''.join(parts)}</div>"
    return f"<div style='margin:4px 0 14px'>{head}{''.join(_legend(states))}{page}</div>"


def _look(token: TokenState) -> tuple[str, bool, int]:
    return token.state, token.generated, 0 if token.state == EVICTED else int(np.ceil(token.gone * SHADES))


def _chip(text: str, state: str, generated: bool, shade: int) -> str:
    style = STYLES[state]
    if shade:  # gone from some heads: an ever redder ground
        style = f"background:rgba(214,69,56,{0.05 + 0.11 * shade:.2f})"
    style += ";border-bottom:2px solid #d98e04" if generated else ""
    return f"<{_ELEMENTS[state]} style='{style};{_CHIP}'>{escape(text)}</{_ELEMENTS[state]}>"


def _legend(states: Sequence[TokenState]) -> Iterator[str]:
    yield "<div style='font-size:12px;line-height:1.9;margin:2px 0 6px'>"
    some = sum(0 < token.gone < 1 for token in states)
    for state in (KEPT, SHARED, RESTORED, EVICTED):
        count = sum(token.state == state for token in states)
        if count or state in (KEPT, EVICTED):
            style = STYLES[state] or "border:1px solid #8888"
            chip = f"<{_ELEMENTS[state]} style='{style};{_CHIP};padding:1px 6px'>{state} {count}</{_ELEMENTS[state]}>"
            yield f"{chip} <span style='opacity:.75;margin-right:14px'>{MEANINGS[state]}</span> "
    if some:
        style = "background:rgba(214,69,56,.27);padding:1px 6px;border-radius:3px"
        yield f"<span style='{style}'>in part {some}</span> "
        yield "<span style='opacity:.75;margin-right:14px'>gone from some of these heads</span> "
    if any(token.generated for token in states):
        yield "<span style='border-bottom:2px solid #d98e04'>underlined</span> "
        yield "<span style='opacity:.75'>generated</span>"
    yield "</div>"
