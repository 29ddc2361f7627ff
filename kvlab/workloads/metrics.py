"""Metrics: how right an answer is, as a number from 0 to 1, by a name that kvlab knows or by a function of one's own.

`contains`, `exact_match` and `f1` compare normalised texts as SQuAD does: in lower case, without ASCII punctuation and
the articles a, an, the. Of several right answers the best one counts.

References: Rajpurkar et al. 2016 (SQuAD, `exact_match` and `f1`); Chen et al. 2017 (an answer is contained where its
words follow each other in the text).
"""

from __future__ import annotations

import difflib
import numbers
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kvlab.errors import UserCodeError, WorkloadError
from kvlab.importing import user_function_names, user_functions, where_raised

MetricFunction = Callable[[str, Any], Any]
MetricLike = str | MetricFunction
MAIN = "accuracy"
"""The grade that tables and charts show: that of the first metric, unless a metric gives this name itself."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NAME = re.compile(r"[A-Za-z][\w.-]{0,59}")


@dataclass(frozen=True)
class Metric:
    """A function of the answer's text and of what is wanted, under a name. Two of one name are told apart by nothing.

    `wanted` is the right answer as the workload gives it: a text, a list of texts, or any other value. `takes_texts`
    says that only texts, numbers and lists of them can be compared.
    """

    name: str
    function: MetricFunction
    takes_texts: bool = False

    def grades(self, text: str, wanted: Any) -> dict[str, float]:
        """Return the grades of an answer by name. Raises UserCodeError where the function fails or returns no grade."""
        about = f"for the answer {_short(text)}, wanted {_short(wanted)}"
        try:
            given = self.function(text, wanted)
        except Exception as error:
            what = f"{type(error).__name__}{f': {error}' if str(error) else ''}{_at(error, self.function)}"
            raise UserCodeError(
                f"metric {self.name!r} raised {what} {about}; it must return a number from 0 to 1 for any text"
            ) from error
        return checked_grades(
            given if isinstance(given, Mapping) else {self.name: given}, f"metric {self.name!r}", about
        )


def checked_grades(given: Mapping[Any, Any], source: str, about: str) -> dict[str, float]:
    """Return grades as floats. Raises UserCodeError for a bad name or value; `source` and `about` say whose it is."""
    grades: dict[str, float] = {}
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            hint = "a grade's name is text: a letter, then letters, digits, _ . or -"
            raise UserCodeError(f"{source} returned a grade named {name!r} {about}; {hint}")
        number = _plain_number(value)
        if number is None or not 0 <= number <= 1:
            shown = repr(value) if len(given) == 1 else f"{name} = {value!r}"
            hint = "return a number from 0 to 1, or several in a dict by their names"
            raise UserCodeError(f"{source} returned {shown} {about}; {hint}")
        grades[name] = number
    return grades


def find_metric(given: MetricLike) -> Metric:
    """Return the metric of a name or function. Raises WorkloadError for an unknown name, or what is neither."""
    if isinstance(given, str):
        return _named_metric(given)
    if not callable(given) or isinstance(given, type):
        raise WorkloadError(
            f"metric {given!r} is neither a name nor a function; write one of {', '.join(_KNOWN)}, or a function "
            "(text, wanted) that returns a number from 0 to 1"
        )
    name = getattr(given, "__name__", type(given).__name__)
    return Metric(name if _NAME.fullmatch(name) else "own", given)


def as_list(given: MetricLike | Iterable[MetricLike]) -> list[MetricLike]:
    """Return one name or function, or several, as a list."""
    several = isinstance(given, Iterable) and not isinstance(given, str | Mapping) and not callable(given)
    return list(given) if several else [given]  # type: ignore[arg-type,list-item]


def _named_metric(name: str) -> Metric:
    own = user_functions(name)
    places = ["kvlab"] * (name in _KNOWN) + list(own)
    if len(places) > 1:
        raise WorkloadError(f"metric {name!r} is in {' and in '.join(places)}; give one of them another name")
    if own:
        return Metric(name, next(iter(own.values())))
    if name in _KNOWN:
        return Metric(name, _KNOWN[name], takes_texts=True)
    names = [*_KNOWN, *user_function_names()]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise WorkloadError(
        f"unknown metric {name!r}: {hint}known are {', '.join(names)}; your own is a function (text, wanted) that "
        "returns a number from 0 to 1, given as it is, or by its name with --import FILE.py"
    )


def find_metrics(given: MetricLike | Iterable[MetricLike]) -> tuple[Metric, ...]:
    """Return the metrics of one name or function, or of several. Raises WorkloadError, also where two share a name."""
    found = [find_metric(one) for one in as_list(given)]
    names = [metric.name for metric in found]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise WorkloadError(f"two metrics are named {twice[0]!r}; give each function a name of its own")
    return tuple(found)


def metric_names() -> list[str]:
    """Return the names of kvlab's metrics."""
    return list(_KNOWN)


def grade_all(metrics: Iterable[Metric], text: str, wanted: Any) -> dict[str, float]:
    """Return the grades of all metrics, the main one among them: that named so, else the first metric's first grade.

    Raises UserCodeError where a metric fails, and where two metrics give one grade.
    """
    grades: dict[str, float] = {}
    for metric in metrics:
        given = metric.grades(text, wanted)
        if both := set(given) & set(grades):
            raise UserCodeError(f"metric {metric.name!r} gives {min(both)!r}, which a metric before it gives too")
        grades |= given
    return {MAIN: next(iter(grades.values())), **grades} if grades else {}


def normalized(text: str) -> str:
    """Return a text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains(text: str, wanted: str) -> float:
    """Return 1 where the normalised text has the normalised right answer in it as whole words, else 0.

    Letters of scripts without spaces between words need no end of a word beside them.
    """
    said, right = normalized(text), normalized(wanted)
    if not right:
        return float(not said)
    starts = (found.start() for found in re.finditer(f"(?={re.escape(right)})", said))
    return float(any(_cuts_no_word(said, at) and _cuts_no_word(said, at + len(right)) for at in starts))


def exact_match(text: str, wanted: str) -> float:
    """Return 1 where both texts are equal once normalised, else 0."""
    return float(normalized(text) == normalized(wanted))


def f1(text: str, wanted: str) -> float:
    """Return the harmonic mean of precision and recall over the words of the normalised texts."""
    said, right = normalized(text).split(), normalized(wanted).split()
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))


def answer_texts(wanted: Any) -> list[str] | None:
    """Return the right answers as texts; None where they are no text, number, or list of those."""
    values = wanted if isinstance(wanted, list | tuple) else [wanted]
    if not values or not all(isinstance(value, str | numbers.Real) for value in values):
        return None
    return [str(value) for value in values]


def _best(compare: Callable[[str, str], float]) -> MetricFunction:
    """Return the metric that compares a text with each of the right answers; the best counts."""

    def metric(text: str, wanted: Any) -> float:
        texts = answer_texts(wanted)
        if texts is None:
            raise TypeError(f"it compares texts, not {type(wanted).__name__}; write texts, or a metric of your own")
        return max(compare(text, right) for right in texts)

    return metric


_KNOWN: Mapping[str, MetricFunction] = {compare.__name__: _best(compare) for compare in (contains, exact_match, f1)}


def _cuts_no_word(text: str, at: int) -> bool:
    """Return whether no word of a script with spaces between its words goes on over this place."""
    return not (0 < at < len(text) and _spaced_letter(text[at - 1]) and _spaced_letter(text[at]))


def _spaced_letter(letter: str) -> bool:
    return letter.isalnum() and unicodedata.category(letter) != "Lo"


def _plain_number(value: Any) -> float | None:
    """Return a number of any library as a float; None for what is no number."""
    if not isinstance(value, numbers.Real) and hasattr(value, "item"):
        try:
            value = value.item()
        except Exception:  # an array of several numbers; each library has its own error
            return None
    return float(value) if isinstance(value, numbers.Real) else None


def _at(error: BaseException, function: MetricFunction) -> str:
    """Return the place in a function's file that an error came from, as text to follow it; empty where unknown."""
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    line = where_raised(error, file)
    if line is None:
        return ""
    return f" at {file}:{line}" if file.endswith(".py") and "ipykernel" not in file else f" in its line {line}"


def _short(value: Any, length: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"
