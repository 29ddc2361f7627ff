"""Where the question and the needle stand in a prompt, as token positions: what a map of evictions is read by."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from kvlab.models import LoadedModel
from kvlab.results.spans import Spans

MAX_VERBATIM = 200
"""Characters of a wanted answer that may stand in the prompt as it is; a longer one is looked up by its numbers."""
_VALUE = re.compile(r"[#@$€]?\w*\d\w*(?:[.,:]\d+)*")
_WHOLE_WORD = r"(?<!\w){}(?!\w)"


def find_spans(model: LoadedModel, prompt: Sequence[int], question: str, wanted: str) -> Spans:
    """Find the last paragraph of the question, and what the wanted answer states wherever else the prompt has it.

    What an answer states is its text where the prompt has it word for word, else its words with a digit in them.
    """
    text = model.decode(prompt)
    asked = question.strip().rsplit("\n\n", 1)[-1].strip()
    at = text.rfind(asked) if asked else -1
    own = (at, at + len(asked)) if at >= 0 else None
    needles = [span for span in _stated(text, wanted.strip()) if own is None or span[1] <= own[0] or span[0] >= own[1]]
    ends = _Ends(model, prompt)
    return Spans(len(prompt), ends.tokens(own) if own else None, tuple(dict.fromkeys(map(ends.tokens, needles))))


def _stated(text: str, wanted: str) -> Iterator[tuple[int, int]]:
    short = 1 < len(wanted) <= MAX_VERBATIM
    verbatim = short and re.search(_WHOLE_WORD.format(re.escape(wanted)), text)
    for value in [wanted] if verbatim else dict.fromkeys(_VALUE.findall(wanted)):
        for found in re.finditer(_WHOLE_WORD.format(re.escape(value)), text):
            yield found.span()


class _Ends:
    """How many characters the first k tokens of a prompt are, found by decoding as few prefixes as needed."""

    def __init__(self, model: LoadedModel, prompt: Sequence[int]) -> None:
        self._model, self._prompt, self._known = model, list(prompt), {0: 0}

    def tokens(self, span: tuple[int, int]) -> tuple[int, int]:
        """Return the tokens `[start, stop)` that hold the characters `[start, stop)`."""
        counts = range(len(self._prompt) + 1)
        start = bisect_right(counts, span[0], key=self._chars) - 1
        return start, max(start + 1, bisect_left(counts, span[1], key=self._chars))

    def _chars(self, count: int) -> int:
        if count not in self._known:
            self._known[count] = len(self._model.decode(self._prompt[:count]))
        return self._known[count]
