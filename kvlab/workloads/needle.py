"""`needle:TASK`: facts hidden in a long text, and one question: the retrieval tasks of the field, by its recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Workload, WorkloadRequest, assistant, check_count, user
from kvlab.workloads.haystack import Count, hide, key, needle, number, sentences, up_to
from kvlab.workloads.word_list import word_list
from kvlab.workloads.words import estimate_tokens

QUESTIONS = ("after", "before", "none")
FRAME_TOKENS = 40
"""Tokens that a chat template puts around the only message, with a system prompt of its own."""
KEYS = VALUES = 4
"""Needles of the tasks with several keys, or with several values of one key."""
MIN_HAYSTACK_TOKENS = 50
HOPS = 4
"""Assignments of variables to variables, in variable tracking."""
OPTION = re.compile(r",(?=\w+=)")


@dataclass(frozen=True)
class HiddenFacts:
    """What a task hides and asks.

    Attributes:
        opening: says what the text is, before it.
        question: asks for the values.
        values: the values that a right answer holds.
        needles: sentences to hide; those at the indices ``asked`` are what is asked for.
        text: the whole text, for a task that hides nothing between sentences.
        taken: keys that no other sentence may name.
    """

    opening: str
    question: str
    values: tuple[str, ...]
    needles: tuple[str, ...] = ()
    asked: tuple[int, ...] = ()
    text: str = ""
    taken: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeedleRequest(WorkloadRequest):
    """A request whose answer is right as far as it holds the wanted values."""

    values: tuple[str, ...] = field(kw_only=True)

    def grade(self, text: str) -> dict[str, float]:
        """Grade `accuracy`: the share of the wanted values that the text contains, in upper or lower case."""
        said = text.casefold()
        return {"accuracy": sum(value.casefold() in said for value in self.values) / len(self.values)}


class Needle(Workload):
    """`n` texts of about `tokens` tokens, each with one question, as RULER (Hsieh et al. 2024, arXiv:2404.06654).

    The tasks and their recipes: `single` (one key with a number of seven digits), `multikey` (four keys, one is asked
    for), `multivalue` (four numbers of one key), `multiquery` (four keys, all are asked for), `vt` (variable tracking:
    a value that four variables pass on) and `cwe` (the ten common words of a numbered list). The grade is RULER's: the
    share of the wanted values that the answer contains.

    Deviations from RULER: the wording, the five sentences of noise and the words are kvlab's own; no beginning of the
    answer is written for the model; `vt` and `cwe` show no solved example; text other than noise is a file of yours
    instead of essays; depths are drawn from [0, 1] instead of 40 steps; and the counts of `cwe` shrink with the length
    (`word_list`).

    Args:
        task: one of the tasks.
        tokens: length of a prompt.
        depth: where the needles that are asked for lie in the text, from 0 to 1; None draws it for each text.
        question: `after` the text, `before` it, or `none`: after the text, but seen only once the KV of the text has
            been evicted, so that no method can choose by it.
        haystack: what lies between the needles: `noise` (five sentences again and again), `sentences` (ever new ones),
            `needles` (of other keys), or a file of text.
        count: counts the tokens of a text; without it a rule of thumb for the bundled tokenizer does.
    """

    name = "needle"
    argument = "TASK"

    def __init__(
        self,
        task: str = "single",
        n: int = 1,
        seed: int = 0,
        tokens: int = 1000,
        count: Count | None = None,
        *,
        depth: float | None = None,
        question: str = "after",
        haystack: str = "noise",
    ) -> None:
        task, *given = OPTION.split(task)
        options = _options(given, {"depth": depth, "question": question, "haystack": haystack})
        check_count("n", n)
        check_count("tokens", tokens)
        if task not in TASKS:
            raise WorkloadError(f"needle has no task {task!r}; write {', '.join(f'needle:{name}' for name in TASKS)}")
        self.task, self.n, self.seed, self.tokens = task, n, seed, tokens
        self.count = count or estimate_tokens
        self.depth, self.question, self.haystack = _checked(task, **options)
        self.name = ",".join([f"needle:{task}", *(f"{name}={value}" for name, value in self._not_default())])

    def _not_default(self) -> Iterable[tuple[str, object]]:
        defaults = {"depth": None, "question": "after", "haystack": "noise"}
        return ((name, getattr(self, name)) for name, usual in defaults.items() if getattr(self, name) != usual)

    def requests(self) -> list[WorkloadRequest]:
        return [self._request(i) for i in range(self.n)]

    def _request(self, index: int) -> NeedleRequest:
        # The same texts for every place of the question.
        rng = Random(f"needle/{self.task}/{self.haystack}/{self.seed}/{index}")
        facts = TASKS[self.task](rng, self.tokens - FRAME_TOKENS, self.count)
        text = facts.text or self._text(rng, facts)
        before = self.question == "before"
        parts = (facts.opening, *((facts.question, text) if before else (text, facts.question)))
        return NeedleRequest(
            conversation=f"needle-{index}",
            turn=1,
            messages=(user("\n".join(parts)),),
            tools=(),
            reference=assistant(", ".join(facts.values)),
            kind="retrieve",
            max_tokens=24 + 12 * len(facts.values),
            question=facts.question,
            wanted=", ".join(facts.values),
            unseen=facts.question if self.question == "none" else "",
            values=facts.values,
        )

    def _text(self, rng: Random, facts: HiddenFacts) -> str:
        depths = [rng.random() for _ in facts.needles]
        if self.task == "vt":
            depths.sort()  # a variable is assigned before it is passed on
        for i in facts.asked if self.depth is not None else ():
            depths[i] = float(self.depth or 0)
        frame = sum(map(self.count, (facts.opening, facts.question, *(f" {one}" for one in facts.needles))))
        room = self.tokens - FRAME_TOKENS - frame
        if room < 1:
            need = self.tokens - room + MIN_HAYSTACK_TOKENS
            raise WorkloadError(
                f"tokens={self.tokens} is too short for needle:{self.task}; write tokens={need} or more"
            )
        return hide(facts.needles, depths, up_to(sentences(self.haystack, rng, facts.taken), room, self.count))


def _options(given: Iterable[str], options: dict[str, object]) -> dict[str, object]:
    """Return the options with those that follow the task in a spec, such as `depth=0.5`."""
    for part in given:
        name, _, value = part.partition("=")
        if name not in options:
            hint = "write tokens as an option of its own" if name == "tokens" else f"write {', '.join(options)}"
            raise WorkloadError(f"needle has no option {name!r} in its name; {hint}")
        options[name] = value
    return options


def _checked(task: str, depth: object, question: object, haystack: object) -> tuple[float | None, str, str]:
    """Return the options in their types. Raises WorkloadError for values that cannot be."""
    if question not in QUESTIONS:
        raise WorkloadError(f"question={question}: write question={', question='.join(QUESTIONS)}")
    if task == "cwe" and haystack != "noise":
        raise WorkloadError("cwe is a list of words, without a haystack: leave haystack out")
    if depth is None:
        return None, str(question), str(haystack)
    if task in ("vt", "cwe"):
        raise WorkloadError(f"{task} is spread over the whole text: leave depth out")
    try:
        place = float(str(depth))
    except ValueError:
        place = -1.0
    if not 0 <= place <= 1:
        raise WorkloadError(f"depth={depth}: write a number from 0 (the beginning) to 1 (the end)")
    return place, str(question), str(haystack)


def _needles(keys: int, values: int, asked: int) -> Callable[[Random, int, Count], HiddenFacts]:
    """Return the maker of a task that hides `values` numbers for each of `keys` keys, and asks for `asked` keys."""

    def make(rng: Random, room: int, count: Count) -> HiddenFacts:
        names: list[str] = []
        while len(names) < keys:
            if (name := key(rng)) not in names:
                names.append(name)
        numbers = [[number(rng) for _ in range(values)] for _ in names]
        hidden = tuple(needle(name, one) for name, mine in zip(names, numbers, strict=True) for one in mine)
        wanted = tuple(one for mine in numbers[:asked] for one in mine)
        about = names[0] if asked == 1 else f"{', '.join(names[: asked - 1])} and {names[asked - 1]}"
        what = "What is the secret number" if len(wanted) == 1 else "What are all the secret numbers"
        return HiddenFacts(
            opening="Secret numbers are hidden in the following text. Remember them: you will be asked for them.",
            question=f"{what} of {about} in the text?",
            values=wanted,
            needles=hidden,
            asked=tuple(range(asked * values)),
            taken=tuple(names),
        )

    return make


def _variables(rng: Random, room: int, count: Count) -> HiddenFacts:
    """Variable tracking: a chain of assignments. All variables that come to hold the value are wanted."""
    value = f"{rng.randrange(10**4, 10**5)}"
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names: list[str] = []
    while len(names) < HOPS + 1:
        if (name := "".join(rng.sample(letters, 5))) not in names:
            names.append(name)
    lines = [f"VAR {names[0]} = {value}."]
    lines += [f"VAR {new} = VAR {old}." for old, new in zip(names, names[1:], strict=False)]
    return HiddenFacts(
        opening="Assignments of variables are hidden in the following text. Remember them: you will be asked for them.",
        question=f"Which variables have the value {value} in the text, directly or through other variables?",
        values=tuple(names),
        needles=tuple(lines),
    )


def _common_words(rng: Random, room: int, count: Count) -> HiddenFacts:
    """Common words: a list in which ten words come far more often than all others."""
    opening = "Some words come more often than others in the following list. Remember those that come most often."
    common, text = word_list(rng, room - count(opening) - FRAME_TOKENS // 2, count)
    question = f"Which {len(common)} words come most often in the list?"
    return HiddenFacts(opening, question, common, text=text)


TASKS: dict[str, Callable[[Random, int, Count], HiddenFacts]] = {
    "single": _needles(1, 1, 1),
    "multikey": _needles(KEYS, 1, 1),
    "multivalue": _needles(1, VALUES, 1),
    "multiquery": _needles(KEYS, 1, KEYS),
    "vt": _variables,
    "cwe": _common_words,
}
