"""The memory of answers: bounded in bytes, by tenant, and on disk in files that are trusted only if they are sound."""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.server.generation.answer_memory import ENTRY_BYTES, AnswerMemory, Known
from kvlab.store import commands
from kvlab.store.answer_files import AnswerFiles, AnswerRecord, remove_answers
from kvlab.store.ssd.folder import StoreFolder
from kvlab.store.ssd.layout import MARKER

LARGE = 1 << 20


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def conversation(memory: AnswerMemory, turns: int, per_turn: int = 10, first: int = 1, tenant: str = "") -> list[int]:
    """Remember a conversation turn by turn; its tokens."""
    ids: list[int] = []
    known = None
    for turn in range(turns):
        ids = [*ids, *range(100 * turn, 100 * turn + per_turn)]
        memory.add(key(first + turn), tenant, ids, known)
        known = Known(key(first + turn), list(ids))
    return ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder as a store makes it."""
    (tmp_path / MARKER).touch()
    return tmp_path


def test_each_turn_is_found_and_costs_only_its_own_tokens() -> None:
    memory = AnswerMemory(LARGE)
    ids = conversation(memory, 50, per_turn=100)
    assert memory.find(key(50), "") == ids
    assert memory.find(key(20), "") == ids[:2000]
    assert memory.nbytes == 50 * (ENTRY_BYTES + 4 * 100)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 40)), max_size=60))
def test_bytes_stay_within_the_budget_whatever_is_added(steps: list[tuple[int, int, int]]) -> None:
    """Branches, repeated keys, parents that are gone: what is found is what was added last, and bytes are bounded."""
    budget = 6 * (ENTRY_BYTES + 80)
    memory, added = AnswerMemory(budget), dict[int, list[int]]()
    for number, parent, count in steps:
        found = memory.find(key(parent), "") if parent != number else None
        start = found or []
        ids = [*start, *range(number, number + count)]
        memory.add(key(number), "", ids, Known(key(parent), start) if found is not None else None)
        added[number] = ids
        assert memory.nbytes <= budget
        assert memory.nbytes == sum(ENTRY_BYTES + 4 * len(r.tokens) for r in memory._entries.values())
        for one, wanted in added.items():
            assert memory.find(key(one), "") in (wanted, None)


def test_what_is_used_stays_with_all_that_it_builds_on() -> None:
    memory = AnswerMemory(20 * (ENTRY_BYTES + 40))
    ids = conversation(memory, 10)
    for other in range(5):
        conversation(memory, 8, first=100 * (other + 1))
        assert memory.find(key(10), "") == ids
    assert memory.find(key(101), "") is None


def test_an_answer_beyond_the_budget_is_not_remembered() -> None:
    memory = AnswerMemory(1000)
    memory.add(key(1), "", range(1000), None)
    assert (len(memory), memory.nbytes, memory.find(key(1), "")) == (0, 0, None)


# -- files ------------------------------------------------------------------------------------------------------------


def test_answers_are_found_after_a_restart(root: Path) -> None:
    ids = conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 12)
    memory = AnswerMemory(files=AnswerFiles(root, LARGE))
    assert memory.file_bytes == sum(file.stat().st_size for file in (root / "answers").iterdir())
    assert memory.find(key(12), "") == ids
    assert memory.find(key(3), "") == ids[:30]
    assert memory.find(key(13), "") is None


def test_files_are_private(root: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 2)
    assert stat.S_IMODE((root / "answers").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (root / "answers").iterdir()} == {0o600}


def test_another_tenant_s_file_is_not_read(root: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 2, tenant="a" * 32)
    for tenant in ("", "b" * 32):
        assert AnswerMemory(files=AnswerFiles(root, LARGE)).find(key(2), tenant) is None


def test_files_stay_within_their_budget(root: Path) -> None:
    files = AnswerFiles(root, 3000)
    conversation(AnswerMemory(files=files), 100)
    held = sum(file.stat().st_size for file in (root / "answers").iterdir())
    assert 0 < held <= 3000
    assert files.nbytes == held
    assert AnswerFiles(root, 1000).nbytes <= 1000


def test_a_parent_that_is_gone_makes_a_miss(root: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 5)
    (root / "answers" / f"{key(2).hex()}-open.answer").unlink()
    memory = AnswerMemory(files=AnswerFiles(root, LARGE))
    assert memory.find(key(5), "") is None
    assert memory.find(key(1), "") is not None


@settings(max_examples=40)
@given(at=st.integers(0, 167), bit=st.integers(0, 7))
def test_a_flipped_bit_makes_a_miss(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("store")
    (root / MARKER).touch()
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 1)
    [file] = (root / "answers").iterdir()
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 1 << bit
    file.write_bytes(data)
    assert AnswerMemory(files=AnswerFiles(root, LARGE)).find(key(1), "") is None


@pytest.mark.parametrize("content", [b"", b"kvlab answer", b"\0" * 4096, None], ids=["empty", "short", "zeros", "cut"])
def test_foreign_content_makes_a_miss_and_is_replaced(root: Path, content: bytes | None) -> None:
    ids = conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 1)
    [file] = (root / "answers").iterdir()
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    memory = AnswerMemory(files=AnswerFiles(root, LARGE))
    assert memory.find(key(1), "") is None
    memory.add(key(1), "", ids, None)
    assert AnswerMemory(files=AnswerFiles(root, LARGE)).find(key(1), "") == ids


def test_a_file_under_another_name_makes_a_miss(root: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 1)
    [file] = (root / "answers").iterdir()
    file.rename(file.with_name(f"{key(7).hex()}-open.answer"))
    assert AnswerMemory(files=AnswerFiles(root, LARGE)).find(key(7), "") is None


def test_names_that_are_not_ours_are_never_touched(root: Path) -> None:
    answers = root / "answers"
    answers.mkdir()
    strange = ["notes.txt", "a.answer", f"{key(1).hex()}.answer", f"{key(1).hex()}-open.answer.bak", "x.part"]
    for name in strange:
        (answers / name).write_text("mine")
        os.utime(answers / name, (0, 0))
    (answers / f"{key(2).hex()}-open.answer").mkdir()
    files = AnswerFiles(root, 2000)
    conversation(AnswerMemory(files=files), 50, first=10)
    remove_answers(root)
    assert [(answers / name).read_text() for name in strange] == ["mine"] * len(strange)
    assert (answers / f"{key(2).hex()}-open.answer").is_dir()
    assert len(list(answers.iterdir())) == len(strange) + 1


@pytest.mark.parametrize("what", ["folder", "file", "dangling"])
def test_links_are_not_followed(root: Path, tmp_path_factory: pytest.TempPathFactory, what: str) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").write_text("mine")
    name = f"{key(1).hex()}-open.answer"
    if what == "folder":
        (root / "answers").symlink_to(elsewhere, target_is_directory=True)
    else:
        (root / "answers").mkdir()
        (root / "answers" / name).symlink_to(elsewhere / ("file" if what == "file" else "none"))
    files = AnswerFiles(root, LARGE)
    assert files.read(key(1), "") is None
    files.write(key(1), "", AnswerRecord(None, 0, array("I", [1, 2])))
    with contextlib.suppress(OSError):
        remove_answers(root)
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "mine"


def test_nothing_is_written_into_a_folder_that_holds_no_store(tmp_path: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(tmp_path, LARGE)), 2)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_when_it_is_old(root: Path) -> None:
    conversation(AnswerMemory(files=AnswerFiles(root, LARGE)), 1)
    parts = [root / "answers" / f"{key(n).hex()}-open.answer.99-{n}.part" for n in (1, 2)]
    for part in parts:
        part.touch()
    os.utime(parts[0], (0, 0))
    AnswerFiles(root, LARGE)
    assert [part.exists() for part in parts] == [False, True]


def test_a_disk_in_trouble_costs_no_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    files = AnswerFiles(root, LARGE)
    memory = AnswerMemory(files=files)
    conversation(memory, 1)
    monkeypatch.setattr(os, "replace", full)
    ids = conversation(memory, 3, first=20)
    assert memory.find(key(22), "") == ids
    assert len(list((root / "answers").iterdir())) == 1
    assert sum("No space left" in record.getMessage() for record in caplog.records) == 1


def test_records_are_removed_by_age_and_tenant(root: Path) -> None:
    files = AnswerFiles(root, LARGE)
    memory = AnswerMemory(files=files)
    conversation(memory, 1, first=1)
    conversation(memory, 1, first=2, tenant="a" * 32)
    conversation(memory, 1, first=3, tenant="b" * 32)
    os.utime(root / "answers" / f"{key(3).hex()}-{'b' * 32}.answer", (0, 0))
    remove_answers(root, tenant="a" * 32)
    assert [files.read(key(n), t) is not None for n, t in ((1, ""), (2, "a" * 32), (3, "b" * 32))] == [
        True,
        False,
        True,
    ]
    remove_answers(root, before=1000.0)
    assert [files.read(key(n), t) is not None for n, t in ((1, ""), (3, "b" * 32))] == [True, False]
    remove_answers(root, tenant="")
    assert list((root / "answers").iterdir()) == []


def test_store_commands_remove_answers_with_the_blocks(tmp_path: Path) -> None:
    """clear, clear of one tenant, and prune: no token of a prompt stays in a folder that was emptied."""
    root = tmp_path / "store"

    def held() -> list[bool]:
        files = AnswerFiles(root, LARGE)
        return [files.read(key(n), tenant) is not None for n, tenant in ((1, ""), (2, "a" * 32))]

    def fill() -> None:
        memory = AnswerMemory(files=AnswerFiles(root, LARGE))
        conversation(memory, 1, first=1)
        conversation(memory, 1, first=2, tenant="a" * 32)
        assert held() == [True, True]

    StoreFolder(root).close()
    fill()
    commands.clear(root, tenant="a" * 32)
    assert held() == [True, False]
    commands.clear(root)
    assert held() == [False, False]
    fill()
    os.utime(root / "answers" / f"{key(1).hex()}-open.answer", (0, 0))
    commands.prune(root, unused=3600)
    assert held() == [False, True]
    commands.prune(root, keep=0)
    assert held() == [False, False]
    fill()
    commands.verify(root)
    assert held() == [True, True]
