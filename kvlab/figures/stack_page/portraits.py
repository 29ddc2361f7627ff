"""A paragraph for each design, and where kvlab's own is not first: every number in them is taken from the rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from kvlab.counts import counted
from kvlab.figures.stack_page.designs import ARTICLE, KVLAB, NOW, TITLES, Design, of_system
from kvlab.figures.stack_page.measured import TABLE
from kvlab.figures.stack_page.stack_rows import StackRows
from kvlab.figures.stack_page.standing import DesignOrder, touch
from kvlab.figures.stack_page.tables import value_text

COSTS_SHOWN = 3
DIFFERENCES_SHOWN = 3
ANOTHER = 1.25
"""The article's variant is another where its number is so many times the released one's, or the other way round."""
WORTH_TELLING = 1.1
"""A number this many times that of the first is a cost."""

BETS: Mapping[str, str] = {
    "ollama": "One live sequence, and a list of whole prompts in memory that it can be exchanged for. It bets on one "
    "conversation that goes on.",
    "lm-studio": "The last sequence stays live, and chunks of 256 tokens wait beside it until the model is unloaded. "
    "It bets on a session that ends with its window.",
    "llama.cpp": "Four slots, each a live sequence, and the list of whole prompts. It bets on a few conversations, "
    "each of which finds the slot or the prompt that begins as it does.",
    "mlx-lm": "Ten whole sequences in memory, found by their longest common beginning. It bets on fewer conversations "
    "than ten.",
    "omlx": "Blocks of 256 tokens on the SSD. It bets on long prompts that come again, and that reading them is "
    "quicker than computing.",
    "vmlx": "Blocks of 64 tokens on the SSD, prompts without their replies. It makes oMLX's bet with finer blocks, for "
    "one request at a time.",
    KVLAB: "Blocks in memory and on the SSD, found to the token, replies included; sequences that run share what they "
    "have in common. It bets on agents: many, alike, and longer lived than the process.",
}


def portraits(rows: StackRows | None) -> str:
    """Return a section for each design: its bet, what it is good for, what it costs, and what has changed."""
    rankings = [] if rows is None else [DesignOrder.of(measure, rows) for measure in TABLE]
    parts = []
    for name, title in TITLES.items():
        design = _design(name, NOW)
        told = [BETS[name], _good_for(design, rankings), _costs(design, rankings), _changed(name, rankings)]
        parts.append(f"### {title}\n\n" + " ".join(filter(None, told)))
    return "\n\n".join(parts)


def not_first(rows: StackRows) -> str:
    """Return a line for each row of the table on which `tiered` is neither first nor tied, with what would win it."""
    own = Design(KVLAB)
    rankings = [ranking for ranking in (DesignOrder.of(measure, rows) for measure in TABLE) if ranking.samples]
    unmeasured = [ranking.measure.title for ranking in rankings if own not in ranking.samples]
    lines = [f"- **{title}**: `{KVLAB}` was not measured." for title in unmeasured]
    for ranking in rankings:
        if own in ranking.samples and not ranking.kvlab_is_first:
            place, best = ranking.order.index(own) + 1, ranking.order[0]
            lines.append(
                f"- **{ranking.measure.title}**: {value_text(ranking, own)}, place {place} of {len(ranking.order)}; "
                f"first is `{best}` with {value_text(ranking, best)}. {ranking.measure.lever}"
            )
    won = len(rankings) - len(lines)
    head = f"It is first, or tied with the first, on {won} of {counted(len(rankings), 'row')}."
    return "\n\n".join([head, "\n".join(lines)]) if lines else head


def _good_for(design: Design, rankings: list[DesignOrder]) -> str:
    if not any(design in ranking.samples for ranking in rankings):
        return f"`{design}` was not measured." if rankings else ""
    first = [ranking for ranking in rankings if design in ranking.first and not ranking.all_alike]
    told = [_praise(design, list(alike)) for _, alike in itertools.groupby(first, lambda one: one.measure.good_for)]
    return f"Good for {_list(told)}: first there, or tied." if told else "It is first on no row."


def _praise(design: Design, rankings: list[DesignOrder]) -> str:
    """Return whom it serves to be first on these rows, which tell of the same with other numbers of agents."""
    numbers = ", ".join(value_text(ranking, design) for ranking in rankings)
    crowds = [str(ranking.measure.crowd) for ranking in rankings if ranking.measure.crowd is not None]
    agents = f" with {_list(crowds)} {'agent' if crowds == ['1'] else 'agents'}" if crowds else ""
    return f"{rankings[0].measure.good_for}{agents} ({numbers})"


def _costs(design: Design, rankings: list[DesignOrder]) -> str:
    behind = [(distance, ranking) for ranking in rankings if (distance := _behind(design, ranking)) >= WORTH_TELLING]
    worst = sorted(behind, key=lambda one: -one[0])[:COSTS_SHOWN]
    told = [
        f"{ranking.measure.title} {value_text(ranking, design)}, where `{ranking.order[0]}` has "
        f"{value_text(ranking, ranking.order[0])}"
        for _, ranking in worst
    ]
    return f"It costs: {'; '.join(told)}." if told else ""


def _changed(name: str, rankings: list[DesignOrder]) -> str:
    """Return on which rows the article's variant is another than the released one."""
    if name == KVLAB:
        return ""
    now, article = _design(name, NOW), _design(name, ARTICLE)
    both = [ranking for ranking in rankings if now in ranking.samples and article in ranking.samples]
    differing = [ranking for ranking in both if not touch(ranking.samples[now], ranking.samples[article])]
    differing = [one for one in differing if _ratio(one.samples[now].median, one.samples[article].median) >= ANOTHER]
    differing.sort(key=lambda ranking: -_ratio(ranking.samples[now].median, ranking.samples[article].median))
    told = [f"{one.measure.title} {value_text(one, article)}" for one in differing[:DIFFERENCES_SHOWN]]
    return f"As the article describes it: {', '.join(told)}." if told else ""


def _behind(design: Design, ranking: DesignOrder) -> float:
    """Return how many times worse than the first a design is; 0 where it is first or has no rows."""
    if design not in ranking.samples or design in ranking.first:
        return 0.0
    return _ratio(ranking.samples[design].median, ranking.samples[ranking.order[0]].median)


def _ratio(one: float, other: float) -> float:
    low, high = sorted((abs(one), abs(other)))
    return high / low if low else math.inf if high else 1.0


def _design(name: str, variant: str) -> Design:
    return Design(name) if name == KVLAB else of_system(name, variant)


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
