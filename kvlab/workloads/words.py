"""The words that generated workloads are made of: invented names, things people look up, and plain filler sentences.

A fact is always worded `... @name is #value` (prose) or `"@name": "#value"` (JSON): in both, the name is the third
token before the value under the bundled tokenizer. Names and values are random in every conversation, so that nothing
can be learnt by heart.
"""

from __future__ import annotations

import re
from random import Random


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_FIRST = _words("mi to ve ka lu so ni ra be do fe ha jo pe su wi")
_SECOND = _words("ra lu nka mo ti sel dar vin ko la nor bri gan ry zan")
NAMES: tuple[str, ...] = tuple(a + b for a in _FIRST for b in _SECOND)  # 240 invented names, one token each

THINGS: tuple[str, ...] = ("badge", "locker", "desk", "order", "ticket", "parcel", "permit", "invoice")
QUESTIONS = ("What is the {thing} of @{name}?", "Tell me the {thing} of @{name}.", "Which {thing} belongs to @{name}?")

ADJECTIVES = _words(
    "old new small large quiet bright early late warm cold simple careful open narrow heavy light "
    "clean busy famous gentle green red blue white dark long short broken useful local"
)
NOUNS = _words(
    "river garden window market letter teacher engine bridge mountain school station kitchen picture story "
    "road village library ship field lamp door table box clock paper doctor farmer child friend driver "
    "machine museum forest harbour office building train shop team music house city report meeting plan"
)
VERBS = _words(
    "crossed opened followed painted carried repaired watched found moved closed passed visited described "
    "measured counted covered answered finished joined reached needed showed held brought kept changed"
)
_PLACES = _words(
    "near the river|after the meeting|before noon|in the morning|behind the station|during the winter|"
    "on the second floor|at the end of the road|with great care|for the first time|across the field|"
    "in the evening|without a word|under the bridge|on Monday|by the window|every day|last year",
    "|",
)
_FRAMES = (
    "The {a} {n} {v} the {n2} {p}.",
    "A {a} {n} {v} the {a2} {n2}.",
    "{P}, the {n} {v} a {a} {n2}.",
    "Nobody knew why the {n} {v} the {a} {n2}.",
    "They said that the {n} was {a} and the {n2} was {a2}.",
    "It was a {a} day, and the {n} {v} the {n2}.",
    "There were {k} people in the {a} {n} {p}.",
    "We {v} the {n} {p}, but the {n2} stayed {a}.",
    "When the {n} is {a}, the {n2} can be {a2}.",
    "She {v} the {n} because it was {a}.",
    "He has worked at the {a} {n} for {k} years.",
    "If you see the {n}, please tell the {n2} {p}.",
)

_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiou])")
_PIECE = re.compile(r"\d{1,3}|[^\W\d_]+|[^\w\s]+|_|\n+")
_TOKENS_PER_PIECE = 1.0


def filler(rng: Random) -> str:
    """Return one plain English sentence without names or values."""
    place = rng.choice(_PLACES)
    sentence = rng.choice(_FRAMES).format(
        a=rng.choice(ADJECTIVES),
        a2=rng.choice(ADJECTIVES),
        n=rng.choice(NOUNS),
        n2=rng.choice(NOUNS),
        v=rng.choice(VERBS),
        p=place,
        P=place[0].upper() + place[1:],
        k=rng.randrange(2, 100),
    )
    return _BEFORE_VOWEL.sub(r"\1n ", sentence)


def value(rng: Random) -> str:
    return f"#{rng.randrange(1000):03d}"


def fact(thing: str, name: str, value: str) -> str:
    return f"The {thing} of @{name} is {value}."


def question(rng: Random, thing: str, name: str) -> str:
    return rng.choice(QUESTIONS).format(thing=thing, name=name)


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of `text`, for generators without a tokenizer."""
    return round(len(_PIECE.findall(text)) * _TOKENS_PER_PIECE)
