"""What it said: every question with what was wanted and the answers, equal ones together, differences marked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from kvlab.counts import counted
from kvlab.results.answers import REFERENCE, answers
from kvlab.results.paint import dot
from kvlab.results.rows import REQUEST, units
from kvlab.results.word_diff import ADDED, REMOVED, SAME, Piece, word_diff

if TYPE_CHECKING:
    from kvlab.charts.policy_styles import PolicyStyle

SHOWN_CHARS = 320
"""Characters of an answer or a question that are shown; the rest is folded."""
LINE_CHARS = 130
"""Characters of a question in one line."""
MIN_SAME_SHARE = 0.4
"""Of an answer that has less in common with the other, the words that it lacks are left out: all would be struck."""

_TAGS = {
    SAME: ("", ""),
    ADDED: ("<ins style='text-decoration:underline 2px;background:#e08a0038;border-radius:3px'>", "</ins>"),
    REMOVED: ("<del style='text-decoration:line-through;opacity:.62'>", "</del>"),
}
_ROW = "background:none;display:flex;flex-wrap:wrap;border-top:1px solid #8884"
_CELL = "text-align:left;padding:4px 14px 4px 0;border:0"
_NAMES_PX, _MARK_PX, _MIN_TEXT_PX = 280, 80, 170
"""Widths of the cells of an answer. Where the three do not fit side by side, mark and text stand below the names."""
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"
_SOFT = "opacity:.65"
_FOLD = "display:inline;font-size:90%"


@dataclass(frozen=True)
class GivenAnswer:
    """One text, the policies that gave it, its main grade (None: not graded), and whether `full` gave it."""

    policies: tuple[str, ...]
    text: str
    score: float | None
    as_full: bool | None


@dataclass(frozen=True)
class AskedQuestion:
    """A request with its different answers, that of `full` first."""

    where: str
    question: str
    wanted: str
    answers: tuple[GivenAnswer, ...]

    @property
    def differs(self) -> bool:
        """Whether the policies disagree."""
        return len({answer.text for answer in self.answers}) > 1

    @property
    def reference(self) -> str | None:
        """The text of `full`; None where it did not run."""
        return next((answer.text for answer in self.answers if answer.as_full), None)


@dataclass(frozen=True)
class AnswerSheet:
    """The answers of a run to read, as text or as HTML; at most `most` questions, those with differences first."""

    questions: tuple[AskedQuestion, ...]
    most: int = 12

    @property
    def shown(self) -> tuple[AskedQuestion, ...]:
        """The questions that are shown, in the order of the rows."""
        if len(self.questions) <= self.most:
            return self.questions
        order = sorted(range(len(self.questions)), key=lambda i: not self.questions[i].differs)
        return tuple(self.questions[i] for i in sorted(order[: self.most]))

    def __repr__(self) -> str:
        if not self.questions:
            return "no answers"
        return "\n\n".join(map(_as_text, self.shown))

    def _repr_html_(self) -> str:
        return sheet_html(self)


def answer_sheet(rows: pl.DataFrame, most: int = 12) -> AnswerSheet:
    """Read the answers of these rows, of all policies and repeats."""
    frame = answers(rows)
    keys = [name for name in REQUEST if name in frame.columns]
    varied = [name for name in keys if name not in ("conversation", "turn") and frame[name].n_unique() > 1]
    groups = frame.partition_by(keys, maintain_order=True) if not frame.is_empty() else []
    return AnswerSheet(tuple(_question(group, varied) for group in groups), most)


def _question(group: pl.DataFrame, varied: Sequence[str]) -> AskedQuestion:
    first = group.row(0, named=True)
    place = [f"{name} {first[name]}" for name in varied]
    place += [str(first["conversation"])] if first.get("conversation") else []
    place += [f"turn {first['turn']}"] if first.get("turn") else []
    found: dict[str, dict[str, Any]] = {}
    for one in group.iter_rows(named=True):
        entry = found.setdefault(one["text"], {"policies": {}, "score": _score(one), "as_full": one["as_full"]})
        entry["policies"][one["policy"]] = None
    given = [GivenAnswer(tuple(e["policies"]), text, e["score"], e["as_full"]) for text, e in found.items()]
    given.sort(key=lambda answer: not answer.as_full)  # stable: the others keep their order
    return AskedQuestion(", ".join(place), first["question"] or "", first["wanted"] or "", tuple(given))


def _score(answer: Mapping[str, Any]) -> float | None:
    """Return the accuracy, or the first grade where there is none; a distance from `full` is no grade."""
    about = {*REQUEST, "kind", "policy", "repeat", "question", "wanted", "text", "answer_tokens", "as_full"}
    about |= set(units()) - {"accuracy"}
    grades = {name: value for name, value in answer.items() if name not in about and value is not None}
    return grades.get("accuracy", next(iter(grades.values()), None))


# -- HTML ----------------------------------------------------------------------------------------------------------


def sheet_html(sheet: AnswerSheet, among: Sequence[str] = ()) -> str:
    """Return the sheet as HTML without scripts or style sheets: a fold for each question, the first one open.

    `among` are the policies of the whole set: names and colours depend on all of them.
    """
    from kvlab.charts.policy_styles import policy_styles  # brings Altair, which takes a moment to import

    if not sheet.questions:
        return ""
    shown = sheet.shown
    given = (policy for question in sheet.questions for answer in question.answers for policy in answer.policies)
    styles = policy_styles([*among, *given])
    opened = next((i for i, question in enumerate(shown) if question.differs), 0)
    folds = "".join(_question_html(question, i == opened, styles) for i, question in enumerate(shown))
    return f"<div style='font-size:90%;margin:0 0 8px;{_SOFT}'>{_legend(sheet)}</div>{folds}"


def _legend(sheet: AnswerSheet) -> str:
    questions, shown = len(sheet.questions), len(sheet.shown)
    said = "Policies that said the same stand together."
    if any(question.reference is not None for question in sheet.questions):
        (a, b), (c, d) = _TAGS[ADDED], _TAGS[REMOVED]
        said += f" Marked: {a}not in the answer of {REFERENCE}{b}, {c}only in the answer of {REFERENCE}{d}."
    else:
        said += f" With {REFERENCE} among the policies, differences from its answer are marked."
    if shown < questions:
        said += f" Shown are {shown} of {questions} questions, first those where answers differ; all: answers()."
    return said


def _question_html(question: AskedQuestion, opened: bool, styles: Mapping[str, PolicyStyle]) -> str:
    asked = shortened(question.question)
    right = _right(question)
    marks = f" <span style='{_SOFT}'>· {escape(right)}</span>" if right else ""
    head = f"<b>{escape(question.where)}</b> {escape(asked)}{marks}"
    rows = "".join(_answer_html(answer, question.reference, styles) for answer in question.answers)
    facts = ""
    if asked != question.question.strip():
        facts += f"<div style='{_TEXT};margin:4px 0'><b>Question</b> {_tail_html(question.question)}</div>"
    if question.wanted:
        wanted = _folded([(SAME, question.wanted)])
        facts += f"<div style='{_TEXT};margin:4px 0'><b>Wanted</b> {wanted}</div>"
    style = "display:block;color:inherit;font-size:inherit"
    table = f"<table style='{style}'><tbody style='display:block'>{rows}</tbody></table>"
    return (
        f"<details{' open' * opened} style='margin:0 0 6px'><summary>{head}</summary>"
        f"<div style='margin:2px 0 12px 16px'>{facts}{table}</div></details>"
    )


def _answer_html(answer: GivenAnswer, reference: str | None, styles: Mapping[str, PolicyStyle]) -> str:
    names = " ".join(
        f"<span style='white-space:nowrap;margin-right:10px'>{dot(styles[policy].tone)}"
        f"<code>{escape(styles[policy].label)}</code></span>"
        for policy in answer.policies
    )
    text = _folded(differences(answer, reference)) if answer.text.strip() else f"<i style='{_SOFT}'>nothing</i>"
    return (
        f"<tr style='{_ROW}'><td style='{_CELL};flex:0 1 {_NAMES_PX}px'>{names}</td>"
        f"<td style='{_CELL};flex:0 0 {_MARK_PX}px;white-space:nowrap'>{escape(_mark(answer.score))}</td>"
        f"<td style='{_CELL};flex:1 1 {_MIN_TEXT_PX}px;{_TEXT}'>{text}</td></tr>"
    )


def differences(answer: GivenAnswer, reference: str | None) -> list[Piece]:
    """Return the answer in pieces, compared with the text of `full` where there is one."""
    if reference is None or answer.as_full:
        return [(SAME, answer.text)]
    pieces = word_diff(reference, answer.text)
    same = sum(len(text) for kind, text in pieces if kind == SAME)
    if same < MIN_SAME_SHARE * max(len(reference), len(answer.text)):
        pieces = [(kind, text) for kind, text in pieces if kind != REMOVED]
    return pieces


def _folded(pieces: Sequence[Piece]) -> str:
    """Return the pieces as HTML; what is behind SHOWN_CHARS is folded, and the fold says whether it differs."""
    shown, hidden, room = [], [], SHOWN_CHARS
    for kind, text in pieces:
        shown.append((kind, text[:room]))
        hidden.append((kind, text[room:]))
        room = max(0, room - len(text))
    rest = sum(len(text) for _, text in hidden)
    if rest < SHOWN_CHARS // 8:  # a fold would take more room than the rest
        return _pieces_html(pieces)
    differs = ", with differences" if any(kind != SAME and text for kind, text in hidden) else ""
    summary = f"<summary style='{_SOFT};cursor:pointer'>… {rest:,} more characters{differs}</summary>"
    return f"{_pieces_html(shown)}<details style='{_FOLD}'>{summary}{_pieces_html(hidden)}</details>"


def shortened(question: str) -> str:
    """Return one line of a question: its last paragraph, where what is asked usually stands, or the end of that."""
    last = " ".join(question.strip().rsplit("\n\n", 1)[-1].split())
    return last if len(last) <= LINE_CHARS else f"… {last[-LINE_CHARS:]}"


def _tail_html(text: str) -> str:
    """Return a long question with what is before its last paragraph, or before its end, folded."""
    last = text.rstrip().rfind("\n\n") + 1
    rest = last if 0 < len(text) - last <= SHOWN_CHARS else len(text) - SHOWN_CHARS
    if rest < SHOWN_CHARS // 8:
        return escape(text)
    summary = f"<summary style='{_SOFT};cursor:pointer'>{rest:,} characters before …</summary>"
    return f"<details style='{_FOLD}'>{summary}{escape(text[:rest])}</details>{escape(text[rest:])}"


def _pieces_html(pieces: Sequence[Piece]) -> str:
    return "".join(f"{_TAGS[kind][0]}{escape(_visible(kind, text))}{_TAGS[kind][1]}" for kind, text in pieces if text)


def _visible(kind: str, text: str) -> str:
    """Make a difference visible that is of spaces alone."""
    return text if kind == SAME or text.strip() else text.replace(" ", "·").replace("\n", "↵\n").replace("\t", "⇥")


def _mark(score: float | None) -> str:
    if score is None:
        return ""
    return {1.0: "✓ right", 0.0: "✗ wrong"}.get(score, f"{score:.2f}")


def _right(question: AskedQuestion) -> str:
    """Return `3 of 5 right`, counting policies; empty where nothing was graded."""
    graded = [answer for answer in question.answers if answer.score is not None]
    if not graded:
        return "" if not question.differs else counted(len(question.answers), "different answer")
    policies = sum(len(answer.policies) for answer in graded)
    return f"{sum(len(answer.policies) for answer in graded if answer.score == 1)} of {policies} right"


# -- text ----------------------------------------------------------------------------------------------------------


def _as_text(question: AskedQuestion) -> str:
    return "\n".join(_text_lines(question))


def _text_lines(question: AskedQuestion) -> Iterator[str]:
    yield f"{question.where}: {shortened(question.question)}"
    if question.wanted:
        yield f"  wanted: {textwrap.shorten(question.wanted, 200, placeholder=' …')}"
    for answer in question.answers:
        mark = f" {_mark(answer.score)}" if answer.score is not None else ""
        text = textwrap.shorten(answer.text, 300, placeholder=" …") or "nothing"
        yield f"  {', '.join(answer.policies)}{mark}: {text}"
