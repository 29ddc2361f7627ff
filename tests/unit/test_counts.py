"""Counts with nouns: one is not many, in anything that kvlab writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlab.counts import counted

PACKAGE = Path(__file__).resolve().parents[2] / "kvlab"
NOUNS = (
    "adapters|answers|blocks|bytes|cells|characters|clients|conversations|cores|days|files|generations|heads|layers|"
    "messages|models|policies|processes|prompts|questions|records|repeats|requests|rows|runs|sequences|steps|threads|"
    "tokens|tools|turns|words|workers"
)
PLURAL = re.compile(rf"^ (?:[a-z-]+ ){{0,2}}?({NOUNS})\b(?!/)")
COUNT = re.compile(r"\blen\(|tokens|turns|count|generations|followers|cores|\bn\b|_n\b")

MANY = {
    "kvlab/server/generation/prompt_cache.py": "more than a context",
    "kvlab/server/concurrency_limit.py": "more than the limit, which is one or more",
    "kvlab/server/ops_routes.py": "as many as the limit",
    "kvlab/recording/zarr_frames.py": "of a damaged file, for its error's cause",
    "kvlab/workloads/needle.py": "what the task asks for, which is measured word by word",
    "kvlab/workloads/word_list.py": "all words of the list",
}
"""Where a plural is right without asking, with the reason."""


@pytest.mark.parametrize(
    ("count", "noun", "many", "text"),
    [
        (1, "core", "", "1 core"),
        (2, "core", "", "2 cores"),
        (0, "token", "", "0 tokens"),
        (1, "prompt token", "", "1 prompt token"),
        (12_345, "prompt token", "", "12,345 prompt tokens"),
        (1, "policy", "policies", "1 policy"),
        (3, "policy", "policies", "3 policies"),
    ],
)
def test_counts_agree_with_their_noun(count: int, noun: str, many: str, text: str) -> None:
    assert counted(count, noun, many) == text


def plurals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Counts in f-strings with a plural right behind them."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant) and PLURAL.match(text.value):
                source = ast.unparse(value.value)
                if COUNT.search(source) and not source.isupper() and "counted(" not in source:
                    yield value.lineno, f"{{{source}}}{text.value[:30]}"


def test_the_search_finds_a_plural_behind_any_count() -> None:
    code = """f'{len(x)} files', f'{prompt_tokens:,} prompt tokens', f'{counted(n, "turn")}, {LIMIT_TOKENS} tokens'"""
    assert [text for _, text in plurals(ast.parse(code))] == ["{len(x)} files", "{prompt_tokens} prompt tokens"]


def test_no_count_has_a_plural_of_its_own() -> None:
    """Write ``counted(n, "token")`` of kvlab.counts; a plural that is always right has its reason in MANY."""
    found = {
        f"{path.relative_to(PACKAGE.parent)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in plurals(ast.parse(path.read_text(encoding="utf-8")))
        if str(path.relative_to(PACKAGE.parent)) not in MANY
    }
    assert found == set()


def test_every_exception_is_one_still() -> None:
    used = {name for name in MANY if any(plurals(ast.parse((PACKAGE.parent / name).read_text(encoding="utf-8"))))}
    assert set(MANY) == used
