"""Formats of traces: what is read, what tells them apart, and what is said of a bad line."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.recording.events import Chained, Finished, Matched, Submitted
from kvlab.recording.recorder import Recorder
from kvlab.replay import BlockTrace, TraceError, load_trace, replay_tiers, statistics
from kvlab.replay.loaders import TraceSource, loaders
from tests.replay_kit import SHARED, needs_traces

MOONCAKE = [
    {"timestamp": 2000, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]},
    {"timestamp": 1000, "input_length": 512, "output_length": 6, "hash_ids": [7]},
    {"timestamp": 2000, "input_length": 1024, "output_length": 7, "hash_ids": [7, 9]},
]
OWN = [
    {"block_tokens": 16},
    {"hash_ids": [5, 6], "t": 3, "input_tokens": 20, "output_tokens": 2, "session": "b"},
    {"hash_ids": [5], "t": 1, "session": "a"},
    {"hash_ids": [], "t": 1, "input_tokens": 3, "session": "b"},
]


def agent(tool: int = 8, system: int = 8, **more: Any) -> dict[str, Any]:
    return {"id": "s", "block_size": 4, "tool_tokens": tool, "system_tokens": system, "requests": [], **more}


def asked(t: float, ids: list[int], rest: int = 1) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": 4 * len(ids) + rest, "out": 3, "hash_ids": ids}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder(path: Path, *sessions: dict[str, Any]) -> Path:
    path.mkdir()
    for number, session in enumerate(sessions):
        (path / f"{number}.json").write_text(json.dumps(session))
    return path


def chains(trace: BlockTrace) -> list[list[int]]:
    return [trace.chain(at).tolist() for at in range(len(trace))]


def test_mooncake_is_sorted_by_time_and_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    trace = load_trace(lines(tmp_path / "a.jsonl", MOONCAKE))
    assert (trace.name, trace.block_tokens) == ("a", 512)
    assert trace.times.tolist() == [1.0, 2.0, 2.0]
    assert trace.input_tokens.tolist() == [512, 600, 1024]
    assert chains(trace) == [[0], [0, 1], [0, 2]]
    assert trace.partial.tolist() == [False, True, False]
    assert trace.sizes.tolist() == [512, 88, 512]


def test_own_lines_have_sessions_and_prompts_without_blocks(tmp_path: Path) -> None:
    trace = load_trace(lines(tmp_path / "own.jsonl", OWN))
    assert (trace.block_tokens, trace.times.tolist()) == (16, [1.0, 1.0, 3.0])
    assert trace.input_tokens.tolist() == [16, 3, 20]
    assert trace.sessions.tolist() == [1, 0, 0]
    assert chains(trace) == [[0], [], [0, 1]]
    assert statistics(trace).empty == 1


def test_ids_that_name_contents_alone_are_told_apart_by_their_chains(tmp_path: Path) -> None:
    rows = [{"block_tokens": 4}, {"hash_ids": [1, 9]}, {"hash_ids": [2, 9]}, {"hash_ids": [1, 9, 9]}]
    trace = load_trace(lines(tmp_path / "a.jsonl", rows))
    assert chains(trace) == [[0, 1], [2, 3], [0, 1, 4]]
    assert trace.parents.tolist() == [-1, 0, -1, 2, 1]
    assert trace.depths.tolist() == [0, 1, 0, 1, 2]


def test_block_lines_skip_what_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "t.trace").write_text("12\r\n7\n*\n12\n\n")
    trace = load_trace(tmp_path / "t.trace")
    assert chains(trace) == [[0], [1], [0]]
    assert trace.is_plain


def test_sessions_interleave_by_their_own_times_and_their_ids_are_their_own(tmp_path: Path) -> None:
    first = agent(0, 0, requests=[asked(0, [1]), asked(10, [1, 2])])
    second = agent(0, 0, requests=[asked(0, [1]), asked(5, [1, 2])])
    trace = load_trace(folder(tmp_path / "sessions", first, second))
    assert trace.times.tolist() == [0, 0, 5, 10]
    assert trace.sessions.tolist() == [0, 1, 1, 0]
    assert chains(trace) == [[0], [1], [1, 2], [0, 3]]


def test_heads_of_equal_sizes_and_kinds_are_shared_by_sessions(tmp_path: Path) -> None:
    one = agent(requests=[asked(0, [1, 2, 3, 4, 5])])
    same = agent(requests=[asked(1, [1, 2, 3, 4, 5])])
    other = agent(12, 8, requests=[asked(2, [1, 2, 3, 4, 5])])
    trace = load_trace(folder(tmp_path / "sessions", one, same, other))
    a, b, c = chains(trace)
    assert a[:4] == b[:4] and a[4] != b[4]
    assert not set(c) & {*a, *b}


def test_subagents_start_at_their_own_times_and_share_heads_of_their_kind(tmp_path: Path) -> None:
    explore = {"type": "subagent", "t": 100, "subagent_type": "Explore", "tool_tokens": 4, "system_tokens": 4}
    inner = explore | {"t": 3, "requests": [asked(0, [10, 11, 12])]}
    one = agent(requests=[asked(0, [1, 2, 3, 4]), explore | {"requests": [asked(2, [7, 8, 9]), inner]}])
    two = agent(requests=[asked(50, [1, 2, 3, 4]), explore | {"requests": [asked(7, [5, 6, 7])]}])
    trace = load_trace(folder(tmp_path / "sessions", one, two))
    assert trace.times.tolist() == [0, 50, 102, 103, 107]
    main, again, sub, nested, other = chains(trace)
    assert main == again
    assert sub[:2] == nested[:2] == other[:2]
    assert len({sub[2], nested[2], other[2]}) == 3
    assert not set(main) & set(sub)
    assert len(set(trace.sessions.tolist())) == 5


def test_an_agent_that_begins_as_another_of_its_session_keeps_those_blocks(tmp_path: Path) -> None:
    explore = {"type": "subagent", "t": 0, "subagent_type": "Explore", "tool_tokens": 4, "system_tokens": 4}
    plan = explore | {"subagent_type": "Plan", "system_tokens": 8, "requests": [asked(0, [5, 9, 9])]}
    session = agent(requests=[explore | {"requests": [asked(0, [5, 6])]}, plan])
    trace = load_trace(folder(tmp_path / "sessions", session, agent(requests=[plan])))
    assert chains(trace)[0][0] == chains(trace)[1][0], "the session's own ids tell that both begin alike"


@pytest.mark.parametrize("ending", ["jsonl.gz", "jsonl.xz", "jsonl"])
def test_packed_files_are_read_directly(ending: str, tmp_path: Path) -> None:
    data = "".join(json.dumps(row) + "\n" for row in MOONCAKE).encode()
    packed = {"jsonl.gz": gzip.compress, "jsonl.xz": lzma.compress, "jsonl": bytes}[ending](data)
    (tmp_path / f"a.{ending}").write_bytes(packed)
    trace = load_trace(tmp_path / f"a.{ending}")
    assert (trace.name, len(trace)) == ("a", 3)


def test_an_archive_is_read_member_by_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar.xz", "w:xz") as archive:
        for name in ("a.json", "b.json"):
            data = json.dumps(agent(requests=[asked(0, [1, 2, 3, 4, 5])])).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    trace = load_trace(tmp_path / "s.tar.xz")
    assert (trace.name, len(trace), trace.unique) == ("s", 2, 6)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([MOONCAKE[0], {**MOONCAKE[0], "hash_ids": [1]}], r"a.jsonl, line 2: expected 2 hash_ids for input_length 600"),
        ([MOONCAKE[0], {"timestamp": 1}], "a.jsonl, line 2: expected an object such as"),
        ([MOONCAKE[0], {**MOONCAKE[0], "hash_ids": ["x", "y"]}], "line 2: expected"),
        ([{"block_tokens": 16}, {"t": 1}], "line 2: expected an object with hash_ids"),
        ([{"block_tokens": "16"}], "line 1: expected a first line such as"),
        ([{"block_tokens": 4}, {"hash_ids": [1, 2], "input_tokens": 4}], "line 2: expected input_tokens that fill 2"),
        ([{"hash_ids": [1, 2]}], "line 1: expected a first line such as"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=says) as raised:
        load_trace(lines(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(raised.value)


def test_a_line_that_is_no_json_is_shown(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", MOONCAKE)
    path.write_text(path.read_text() + "{oh no\n")
    with pytest.raises(TraceError, match=r"line 4: expected an object .*, not \{oh no"):
        load_trace(path)


@pytest.mark.parametrize(
    "broken",
    [
        agent(requests=[{"t": 0, "in": 9, "hash_ids": [1]}]),
        agent(requests=[{"in": 4, "hash_ids": [1]}]),
        agent(requests=[asked(0, [-1])]),
        agent(block_size=0),
        {"tool_tokens": 1, "system_tokens": 1, "requests": []},
    ],
)
def test_a_bad_session_is_named(broken: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"0.json, line 1: expected"):
        load_trace(folder(tmp_path / "sessions", broken))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(b"no xz")
    (tmp_path / "b.txt").write_text("hello\nworld\n")
    with pytest.raises(TraceError, match="a.xz: it cannot be unpacked"):
        load_trace(tmp_path / "a.xz")
    with pytest.raises(TraceError, match="b.txt: its content fits no format that is known; say which with --format"):
        load_trace(tmp_path / "b.txt")
    with pytest.raises(TraceError, match="no such file"):
        load_trace(tmp_path / "none")
    with pytest.raises(TraceError, match="there is no format 'csv'; use one of"):
        load_trace(tmp_path / "b.txt", "csv")


def record(path: Path) -> Path:
    recorder = Recorder()
    requests = [
        ("a", 0.0, 40, 0, "never_seen"),
        ("b", 1.0, 40, 32, "never_seen"),
        ("a", 2.0, 64, 40, "never_seen"),
        ("a", 3.0, 64, 20, "diverged_at=20"),
    ]
    for number, (conversation, t, tokens, cached, miss) in enumerate(requests):
        recorder.emit(Submitted(number, 100 + t, tokens, 9, {"conversation": conversation}))
        recorder.emit(Matched(number, 100 + t, cached, {"ram": cached}, miss, 0.0))
        recorder.emit(Finished(number, 100 + t, "stop", 7, 0))
    return recorder.save(path)


def test_events_that_name_blocks_give_the_chains_that_the_store_saw(tmp_path: Path) -> None:
    recorder = Recorder()
    named = [((5, 6), (5, 6, 7), 0), ((5, 6, 7, 8), (5, 6, 7, 8), 57), ((5, 9), (5, 9), 16)]
    for request, (prompt, kept, cached) in enumerate(named):
        tags = {"conversation": "ab"[request // 2]}
        recorder.emit(Submitted(request, 10.0 + request, 16 * len(prompt) + 3, 8, tags))
        recorder.emit(Chained(request, 10.1 + request, 16, False, np.array(prompt)))
        recorder.emit(Matched(request, 10.1 + request, cached, {}, "", 0.0))
        recorder.emit(Chained(request, 10.2 + request, 16, True, np.array(kept)))
        recorder.emit(Finished(request, 10.3 + request, "stop", 6, 0))
    trace = load_trace(recorder.save(tmp_path / "record.zarr"))
    assert (trace.block_tokens, trace.times.tolist()) == (16, [0.0, 1.0, 2.0])
    assert chains(trace) == [[0, 1, 2], [0, 1, 2, 3], [0, 4]]
    assert trace.asked_blocks.tolist() == [2, 4, 2]
    assert trace.input_tokens.tolist() == [35, 67, 35]
    found = replay_tiers(trace, "inf", workers=1, progress=False).counts[0]
    assert found.cached.tolist() == [0, 48 + 9, 16], "an answer's block, and 9 tokens of one that went on otherwise"


def test_events_of_a_run_give_chains_by_conversation(tmp_path: Path) -> None:
    trace = load_trace(record(tmp_path / "run" / "record.zarr").parent)
    assert trace.block_tokens == 16
    assert trace.times.tolist() == [0, 1, 2, 3]
    assert trace.output_tokens.tolist() == [7] * 4
    assert trace.sessions.tolist() == [0, 1, 0, 0]
    first, other, second, third = chains(trace)
    assert first[:2] == other[:2] == second[:2], "b found 32 cached tokens at its first turn"
    assert not {first[2], other[2]} & set(second), "a partial block is not part of a longer prompt"
    assert (third[0], third[1] == second[1]) == (second[0], False), "it diverged in its second block"
    assert load_trace(tmp_path / "run" / "record.zarr").unique == trace.unique


def test_every_format_recognises_its_own_content_alone(tmp_path: Path) -> None:
    (tmp_path / "t.trace").write_text("1\n2\n3\n")
    (tmp_path / "run").mkdir()
    made = {
        "mooncake": lines(tmp_path / "a.jsonl", MOONCAKE),
        "hash_ids": lines(tmp_path / "b.jsonl", OWN),
        "blocks": tmp_path / "t.trace",
        "kv-cache-tester": folder(tmp_path / "s", agent()),
        "kvlab": record(tmp_path / "run" / "record.zarr").parent,
    }
    assert set(made) == set(loaders())
    for name, path in made.items():
        assert [other for other, one in loaders().items() if one.recognises(TraceSource(path))] == [name]


@needs_traces
def test_public_traces_are_recognised_by_their_content() -> None:
    for path, name in (
        ("mooncake/conversation_trace.jsonl.xz", "mooncake"),
        ("kv-cache-tester/sessions.tar.xz", "kv-cache-tester"),
        ("caffeine-lirs/2_pools.trace.gz", "blocks"),
    ):
        source = TraceSource(SHARED / path)
        assert [other for other, one in loaders().items() if one.recognises(source)] == [name]
