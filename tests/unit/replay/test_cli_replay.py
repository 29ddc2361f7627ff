"""``kvlab replay``: a document, a table, and one line for wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlab.cli import main


@pytest.fixture
def trace(tmp_path: Path) -> str:
    rows = [{"block_tokens": 16}, *({"hash_ids": [1, 2, 3 + n % 4], "t": n} for n in range(20))]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "chat.jsonl")


def test_json_is_one_document_with_the_traces_numbers(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", trace, "--replace", "lru,fifo", "--capacity", "50%,5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["command"] == "replay"
    assert printed["provenance"]["trace"]["requests"] == 20
    rows = [row for row in printed["rows"] if row["metric"] == "hit_ratio"]
    assert [(row["replace"], row["capacity"]) for row in rows] == [
        ("unlimited", "inf"), ("lru", "50%"), ("lru", "5"), ("fifo", "50%"), ("fifo", "5"),
    ]  # fmt: skip


def test_people_get_a_table(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", trace, "--capacity", "4"]) == 0
    printed = capsys.readouterr().out
    assert "chat: 20 requests, 60 blocks of 16 tokens, 6 different" in printed
    assert "unlimited" in printed and "by token" in printed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--capacity", "2GB"], "--kv-bytes"),
        (["--replace", "mru"], "use one of"),
        (["--format", "csv"], "use one of"),
        (["--sample", "2"], "such as 0.1"),
        (["--capacity", "a lot"], "such as 5%"),
    ],
)
def test_wrong_input_ends_with_status_2_and_one_line(
    options: list[str], says: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", trace, *options]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_missing_file_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plan"], "one size after the other"),
        (["--causes"], "replays nothing"),
        (["--workers", "2"], "processes of this machine"),
    ],
)
def test_a_scheduler_is_refused_where_it_has_nothing_to_spread(
    options: list[str], says: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", trace, "--scheduler", "local:2", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_scheduler_is_one_line_that_names_both_forms(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", trace, "--scheduler", "mac-1:8786"]) == 2
    said = capsys.readouterr().err
    assert "local:N" in said and "tcp://host:8786" in said and said.count("\n") == 1
