"""Haystacks: sentences up to a length, that the facts of a `needle` task are hidden between."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from kvlab.errors import WorkloadError
from kvlab.workloads.words import ADJECTIVES, NOUNS, filler

NOISE = ("The garden is green.", "The river is cold.", "The road is long.", "We followed it.", "It was a warm evening.")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
MAX_SENTENCE_CHARACTERS = 200
"""Longer sentences are cut, so that text without full stops can be filled up to a length, too."""

Count = Callable[[str], int]


def key(rng: Random) -> str:
    """Return a key of two words, such as `quiet-garden`."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def number(rng: Random) -> str:
    """Return a number of seven digits."""
    return str(rng.randrange(10**6, 10**7))


def needle(key: str, value: str) -> str:
    return f"The secret number of {key} is {value}."


def sentences(kind: str, rng: Random, taken: Sequence[str]) -> Iterator[str]:
    """Yield sentences without end; `taken` are keys that none of them may name.

    `noise` repeats five short sentences, `sentences` makes ever new ones, `needles` hides more numbers; any other
    ``kind`` is a file of text, read from its beginning, again and again. Raises WorkloadError for one without text.
    """
    if kind == "noise":
        return itertools.cycle(NOISE)
    if kind == "sentences":
        return (filler(rng) for _ in itertools.count())
    if kind == "needles":
        keys = (key(rng) for _ in itertools.count())
        return (needle(one, number(rng)) for one in keys if one not in taken)
    return itertools.cycle(read_sentences(kind))


def read_sentences(path: str) -> list[str]:
    """Read a file of text. Raises WorkloadError where it is missing, no UTF-8, or empty."""
    known = "write noise, sentences, needles, or a file of text"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"haystack={path}: {error.strerror or error}; {known}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(f"haystack={path}: not readable as UTF-8 text ({error}); {known}") from error
    sentences = SENTENCE_END.split(" ".join(text.split()))
    found = [part for sentence in sentences for part in textwrap.wrap(sentence, MAX_SENTENCE_CHARACTERS)]
    if not found:
        raise WorkloadError(f"haystack={path}: there is no text in it; {known}")
    return found


def up_to(source: Iterator[str], room: int, count: Count) -> list[str]:
    """Return the first sentences of ``source`` that have ``room`` tokens together, at least one."""
    made: list[str] = []
    sizes: dict[str, int] = {}
    for sentence in source:
        if sentence not in sizes:
            sizes[sentence] = count(f" {sentence}")
        room -= sizes[sentence]
        if made and room < 0:
            return made
        made.append(sentence)
    return made


def hide(needles: Sequence[str], depths: Sequence[float], haystack: Sequence[str]) -> str:
    """Return the text with each needle between two sentences: at depth 0 in front of all, at depth 1 behind all."""
    places = [round(depth * len(haystack)) for depth in depths]
    made: list[str] = []
    for place in range(len(haystack) + 1):
        made += [one for one, at in zip(needles, places, strict=True) if at == place]
        made += haystack[place : place + 1]
    return " ".join(made)
