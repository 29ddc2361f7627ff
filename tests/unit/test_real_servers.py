"""What real servers were seen to do stands in the rows, and the page on calibration is made of them."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kvlab.systems.observations import Step, common_length, read_observations

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = {session.setup: session for session in read_observations(ROOT / "experiments" / "rows" / "real_servers.csv")}
WINDOWED = ("window-chain", "gemma-3-270m")
LLAMA_CPP = [
    name
    for name, session in SESSIONS.items()
    if session.facts["server"] == "llama-server" and session.facts["model"] not in WINDOWED
]


def script(name: str) -> ModuleType:
    """Return a module of experiments/real_servers, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / "real_servers" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return script("table")


def step(setup: str, scenario: str, name: str) -> Step:
    [found] = [one for one in SESSIONS[setup].steps if (one.scenario, one.step) == (scenario, name)]
    return found


def cached(setup: str, scenario: str, *names: str) -> list[int]:
    return [step(setup, scenario, name).cached or 0 for name in names]


def test_the_page_shows_the_rows(table):
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    assert table.with_tables(page, list(SESSIONS.values())) == page
    assert table.with_inferred(page) == page


def test_a_server_that_is_not_installed_is_skipped_with_the_command_that_installs_it(tmp_path):
    environments = script("environments")
    assert environments.why_absent("vmlx", tmp_path).endswith("environments.py make vmlx")
    (tmp_path / "vmlx").mkdir()
    (tmp_path / "vmlx" / environments.FACTS_FILE).write_text('{"vmlx": "1"}')
    assert environments.why_absent("vmlx", tmp_path) == ""
    assert environments.why_absent("mlx-lm", tmp_path) == "", "it comes with kvlab"


def test_every_session_says_what_was_run():
    for session in SESSIONS.values():
        assert {"server", "version", "flags", "packages", "model", "date"} <= set(session.facts)
        assert session.facts["version"]


@pytest.mark.parametrize("setup", SESSIONS)
def test_no_server_reports_more_than_it_was_sent_before(setup):
    earlier: list[tuple[int, ...]] = []
    for one in SESSIONS[setup].steps:
        known = max((common_length(one.prompt, other) for other in earlier), default=0)
        assert (one.cached or 0) <= min(known, max(0, len(one.prompt) - 1)), (one.scenario, one.step)
        earlier.append((*one.prompt, *one.reply))


@pytest.mark.parametrize("setup", LLAMA_CPP)
def test_llama_server_computes_the_last_token_again_and_holds_none_that_it_said_last(setup):
    assert cached(setup, "repeat", "first", "again") == [0, 299]
    assert cached(setup, "reply_kept", "longer") == [307]
    assert cached(setup, "exact", "with its reply") == [40]


@pytest.mark.parametrize(
    ("setup", "found"), [("llama-server", 0), ("llama-server-np4", 0), ("llama-server-np1", 24), ("ollama-args", 24)]
)
def test_llama_server_looks_for_more_than_a_tenth_where_it_has_several_slots(setup, found):
    assert cached(setup, "shares", "24 other", "36 other", "90 other") == [found, 36, 90]


def test_llama_server_finds_a_quarter_of_a_saved_prompt_and_takes_it_from_its_owner():
    steps = ("36 other", "72 other", "78 other", "150 other")
    assert cached("llama-server", "shares_later", *steps) == [0, 0, 78, 150]
    assert cached("llama-server-np4", "shares_later", *steps) == [36, 72, 78, 150]
    assert cached("llama-server", "shares_later", "72 first again", "78 first again") == [299, 78]


def test_mlx_lm_reads_do_not_refresh_and_an_exact_hit_ends_the_server():
    # Ten were kept. c2 was read by a prompt with its first 30 tokens, and left next all the same; c3 was the one after.
    assert cached("mlx-lm", "order", "c2 branch", "c2 after", "c3 after", "c9 after") == [30, 30, 0, 39]
    assert step("mlx-lm", "exact", "with its reply").failed
    assert step("mlx-lm", "exact", "afterwards").failed, "every later request fails"


def test_vmlx_stores_prompts_without_opening_and_last_token_and_finds_whole_blocks_elsewhere():
    first = step("vmlx", "chat", "first")
    stored = len(first.prompt) - first.suffix - 1
    assert cached("vmlx", "chat", "again", "next turn", "first again") == [stored] * 3
    [other] = cached("vmlx", "chat", "other user")
    assert other % 64 == 0 and 0 < other <= common_length(step("vmlx", "chat", "other user").prompt, first.prompt)
    assert cached("vmlx", "repeat", "again") == [299]
    assert cached("vmlx", "restart", "after", "chat after") == [299, 325], "blocks on disk outlive a restart"


def test_the_same_requests_find_as_many_tokens_on_real_weights_as_on_two_layers():
    """Where both models gave a reply of as many tokens; a cache decides by tokens, not by weights."""
    for name in (name for name in SESSIONS if name.endswith("-smollm2")):
        plain = {(one.scenario, one.step): one for one in SESSIONS[name.removesuffix("-smollm2")].steps}
        real = [one for one in SESSIONS[name].steps if one.is_request]
        for one in (one for one in real if one.scenario in ("repeat", "append", "divergence", "alternate")):
            other = plain[one.scenario, one.step]
            assert (one.cached, len(one.prompt)) == (other.cached, len(other.prompt)), (name, one.scenario, one.step)


@pytest.mark.parametrize("setup", ["llama-server-windows", "llama-server-np1-windows"])
def test_llama_server_needs_a_checkpoint_within_one_window_and_computes_its_last_token_again(setup):
    first, again, longer, other = cached(setup, "window_within", "first", "again", "longer", "other half")
    assert (first, again, longer, other) == (0, 295, 295, 0), "a checkpoint lies 4 tokens before the end of 300"


def test_llama_server_goes_back_as_far_as_the_cells_of_its_window_reach():
    # 1,024 cells hold 1,403 tokens from 379 on, of which a window of 512 is before the token that is computed first.
    steps = ("2 other", "40 other", "300 other", "600 other", "1000 other")
    assert cached("llama-server-np1-windows", "window_divergence", *steps) == [1398, 1360, 1100, 0, 0]
    assert cached("llama-server-np1-windows", "window_divergence", "1000 first again") == [1395], "from the host list"


def test_mlx_lm_cannot_go_back_in_a_window_and_keeps_a_system_prompt_only_before_a_user():
    left = ("2 other", "40 other", "300 other", "600 other", "1000 other")
    assert cached("mlx-lm-windows", "window_divergence", *left) == [0] * 5
    assert cached("mlx-lm-windows", "window_within", "other half") == [150], "before the window is full it can"
    system = (
        step("mlx-lm-windows", "window_chat", "first").ends[0] + SESSIONS["mlx-lm-windows"].facts["user_opening_tokens"]
    )
    assert cached("mlx-lm-windows", "window_chat", "other user", "next turn") == [system, 1415]
    assert cached("mlx-lm-windows", "window_tool", "other user") == [0], "the last message was a tool's"
    assert step("mlx-lm-windows", "window_tool", "first").last_role == "tool"


@pytest.mark.parametrize("server", ["llama-server", "mlx-lm"])
def test_tokens_by_ttft_were_measured_where_a_server_reports_them(table, server):
    with table.INFERRED.open(encoding="utf-8", newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["setup"].startswith(server)]
    assert len(rows) >= 4
    for row in rows:
        off = abs(int(row["inferred_tokens"]) - int(row["reported_tokens"])) / int(row["reported_tokens"])
        assert float(row["difference"]) == pytest.approx(off, abs=0.005), "a row agrees with itself"


GEMMA3 = [name for name in SESSIONS if name.endswith("-gemma3")]


@pytest.mark.parametrize("setup", GEMMA3)
def test_gemma_3_finds_what_six_layers_of_its_shape_find_and_the_token_that_begins_each_text(setup):
    shape = {(one.scenario, one.step): one for one in SESSIONS[setup.removesuffix("gemma3") + "windows"].steps}
    asked = [one for one in SESSIONS[setup].steps if one.is_request]
    assert len(asked) > 30
    for one in asked:
        other = shape[one.scenario, one.step]
        # The same words can be a few tokens more in the other vocabulary, all of them before the branch.
        longer = len(one.prompt) - len(other.prompt)
        assert 1 <= longer <= 3
        if other.cached:
            assert one.cached == other.cached + longer, (one.scenario, one.step)
        else:
            assert one.cached is not None and one.cached <= 1, "no more than the token that begins each text"
