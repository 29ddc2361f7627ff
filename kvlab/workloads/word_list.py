"""A numbered list of words, ten of which come far more often than all others (the task `cwe` of `needle`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from random import Random

from kvlab.errors import WorkloadError
from kvlab.workloads.haystack import Count
from kvlab.workloads.words import ADJECTIVES, NAMES, NOUNS, VERBS

COMMON_WORDS = 10
MOST_REPEATS, LEAST_REPEATS = 30, 4
"""How often a common word comes: RULER's number, and the least for which it stands out."""
UNCOMMON_PART = 10
"""How much rarer than a common word an uncommon one is."""
FITTING_STEPS = 3
VOCABULARY = tuple(dict.fromkeys((*ADJECTIVES, *NOUNS, *VERBS, *NAMES)))


def word_list(rng: Random, room: int, count: Count) -> tuple[tuple[str, ...], str]:
    """Return the common words, and a list of about `room` tokens.

    Half of the list is common words, each of them 30 times where that is enough, and fewer times in a short list; an
    uncommon word comes a tenth as often, and more often where the words would not suffice. Raises WorkloadError for a
    list that is too short, or too long for the words to be uncommon.
    """
    words = rng.sample(VOCABULARY, len(VOCABULARY))
    common, others = words[:COMMON_WORDS], words[COMMON_WORDS:]
    entries = len(words)
    for _ in range(FITTING_STEPS):  # the numbers of a longer list have more digits
        each = count(_numbered(words[i % len(words)] for i in range(entries))) / entries
        entries = max(1, int(room / each))
    repeats = min(MOST_REPEATS, entries // (2 * COMMON_WORDS))
    if repeats < LEAST_REPEATS:
        need = math.ceil(LEAST_REPEATS * 2 * COMMON_WORDS * each) + 100
        raise WorkloadError(f"cwe is too short for {COMMON_WORDS} common words; write tokens={need} or more")
    left = entries - repeats * COMMON_WORDS
    rare = max(1, repeats // UNCOMMON_PART, math.ceil(left / len(others)))
    if rare > repeats // 2:
        most = int((repeats * COMMON_WORDS + repeats // 2 * len(others)) * each)
        raise WorkloadError(f"cwe is too long for its {len(words)} words; write tokens={most} or fewer")
    listed = common * repeats + others[: left // rare] * rare
    rng.shuffle(listed)
    return tuple(common), _numbered(listed)


def _numbered(words: Iterable[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1))
