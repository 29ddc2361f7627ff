"""Text of a page of HTML, for terms that are to be read in a terminal."""

from __future__ import annotations

import textwrap
from html.parser import HTMLParser

WIDTH = 100
BLOCKS = frozenset({"p", "li", "ul", "ol", "div", "tr", "h1", "h2", "h3", "h4", "h5", "section", "article", "br"})
NOT_SHOWN = frozenset({"script", "style", "head", "nav", "devsite-header", "devsite-footer", "button"})


def page_text(html: str, title: str) -> str:
    """Return the text of the article of a page, from the heading ``title`` on, wrapped to lines."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = [" ".join(line.split()) for line in "".join(reader.article or reader.page).splitlines()]
    lines = [line for line in lines if line]
    start = next((at for at, line in enumerate(lines) if line == title), 0)
    return "\n\n".join(textwrap.fill(line, WIDTH) for line in lines[start:]) + "\n"


class _Reader(HTMLParser):
    """Collects the text of a page, and apart the text of its article."""

    def __init__(self) -> None:
        super().__init__()
        self.page: list[str] = []
        self.article: list[str] = []
        self._articles = 0
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in NOT_SHOWN:
            self._hidden.append(tag)
        self._articles += tag == "article"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        self._break(tag)
        self._articles -= tag == "article"

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        data = data.replace("\n", " ")
        self.page.append(data)
        if self._articles:
            self.article.append(data)

    def _break(self, tag: str) -> None:
        if tag in BLOCKS:
            self.page.append("\n")
            if self._articles:
                self.article.append("\n")
