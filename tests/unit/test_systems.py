"""The systems against what their servers do, in numbers: slots, contexts, blocks, limits; and how they are named."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli.main import main
from kvlab.errors import KvlabError
from kvlab.policies import Policy
from kvlab.server.concurrency_limit import ConcurrencyLimit
from kvlab.server.errors import ApiError
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings, of_system
from kvlab.systems import System, all_systems, config_of, parse_candidates, policy_of, settings_of, system_names
from kvlab.systems.presets.ollama import batch_tokens
from kvlab.systems.server_values import padded_context, share_of_disk

SIX = ["llama.cpp", "lm-studio", "mlx-lm", "ollama", "omlx", "vmlx"]


def settings(name: str) -> dict[str, Any]:
    return System.parse(name).settings


# -- the values -------------------------------------------------------------------------------------------------------
def test_there_are_six_servers_in_two_variants_each() -> None:
    assert sorted(system_names()) == SIX
    for name in SIX:
        assert {one.variant for one in all_systems() if one.name == name} == {"now", "article"}


@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_every_setting_has_a_source_that_names_a_release_or_a_document(system: System) -> None:
    row = system.row()
    assert set(row["sources"]) == set(row["settings"]) == set(system.settings)
    releases = ("llama.cpp b11434", "Ollama v0.", "mlx-engine ", "mlx-lm ", "oMLX 0.", "vMLX 1.", "LM Studio ")
    for setting, source in row["sources"].items():
        told = source.startswith((*releases, "the article", "kvlab: ", "unknown"))
        assert told, f"{setting} has the source {source!r}"
        assert len(source.split(": ")) > 1 or source.startswith("the article"), source
    assert system.release
    assert {"system", "variant", "policy", "settings", "sources"} <= set(row)
    json.dumps(row)


@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_a_system_is_read_from_its_name_and_is_a_value(system: System) -> None:
    assert System.parse(str(system)) == system
    assert pickle.loads(pickle.dumps(system)) == system
    assert hash(System.parse(str(system))) == hash(system)
    assert str(system) in system._repr_html_()
    assert policy_of(system) == system.policy
    assert config_of(system) == system.config
    assert settings_of(system) == {"systems": {str(system): system.settings}}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "omxl",
            "unknown system 'omxl': did you mean 'omlx'? known are llama.cpp, lm-studio, mlx-lm, ollama, omlx, vmlx",
        ),
        ("omlx:variant=old", "system 'omlx' has no variant 'old': there are now, article"),
        ("omlx:engine=mlx", "system 'omlx' has no engine 'mlx': there are no engines"),
        ("ollama:engine=x", "system 'ollama' has no engine 'x': there are gguf, mlx"),
        ("ollama:variant=article,engine=mlx", "has no engine 'mlx' in variant 'article'"),
        ("llama.cpp:np=4", "has no option 'np': it takes variant, parallel, context"),
        ("llama.cpp:parallel=x", "system 'llama.cpp' cannot read parallel=x"),
        ("llama.cpp:parallel", "write each option once, as key=value"),
        ("llama.cpp:cache_type_k=q5_0", "KV of type q5_0 is not available; write one of f16, q8_0, q4_0"),
        ("llama.cpp:context_shift=true", "write context_shift=true,context=4096"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name: str, says: str) -> None:
    with pytest.raises(KvlabError, match=re.escape(says)):
        _ = System.parse(name).policy


def test_candidates_are_policies_and_systems_each_once() -> None:
    read = parse_candidates(["full", "paged", "full"], ["omlx", "omlx"])
    assert [str(one) for one in read] == ["full", "paged", "omlx"]
    assert config_of(Policy.parse("full")) is None
    assert settings_of(Policy.parse("full")) == {}


# -- llama.cpp --------------------------------------------------------------------------------------------------------
def test_llama_cpp_has_four_slots_in_one_memory_and_eight_gib_beside_them() -> None:
    now = settings("llama.cpp")
    assert (now["reuse.n"], now["reuse.unified"], now["reuse.host"]) == (4, True, "8GiB")
    assert (now["reuse.share"], now["reuse.keep"]) == (0.1, 0.25)
    assert (now["max_concurrency"], now["queue"], now["prefill_step"]) == (4, None, 2048)
    assert (now["long_prompt"], now["overflow"], now["context"]) == ("error", "stop", None)
    assert (now["codec"], now["interleave"]) == ("raw", "chunks")


def test_llama_cpp_divides_a_context_among_given_slots_only() -> None:
    assert settings("llama.cpp:context=8192")["context"] == 8192
    four = settings("llama.cpp:parallel=4,context=8192")
    assert (four["context"], four["reuse.n"], four["reuse.unified"]) == (2048, 4, False)
    assert padded_context(1000, 3) == 512
    assert settings("llama.cpp:parallel=1,cache_ram=0")["reuse.host"] == "0"
    shifting = settings("llama.cpp:context=512,context_shift=true,keep=16")
    assert shifting["overflow"] == "shift:keep=16"
    config = System.parse("llama.cpp:context=512,context_shift=true,keep=16").config
    assert config.limit().shift(511) == (16, 247)


def test_llama_cpp_of_the_article_has_8192_tokens_a_slot_and_8_bits_for_keys_only() -> None:
    article = settings("llama.cpp:variant=article")
    assert (article["context"], article["reuse.n"], article["reuse.unified"]) == (8192, 4, False)
    assert str(System.parse("llama.cpp:variant=article").policy.codec) == "quantized:v_bits=raw"
    assert str(System.parse("llama.cpp:cache_type_k=q8_0").policy.codec) == "quantized:v_bits=raw"
    assert str(System.parse("llama.cpp:cache_type_v=q4_0").policy.codec) == "quantized:bits=4,k_bits=raw"


# -- Ollama -----------------------------------------------------------------------------------------------------------
def test_ollama_serves_one_request_at_a_time_from_one_slot_with_a_host_list() -> None:
    now = settings("ollama")
    assert (now["max_concurrency"], now["reuse.n"], now["reuse.unified"]) == (1, 1, False)
    assert (now["reuse.host"], now["reuse.share"], now["queue"]) == ("8GiB", 0.1, None)
    assert (now["long_prompt"], now["overflow"]) == ("truncate-middle:keep=4", "shift:keep=4")


@pytest.mark.parametrize(("context", "batch"), [(4096, 512), (4097, 1024), (32768, 1024), (32769, 2048)])
def test_ollama_takes_its_batch_from_the_context(context: int, batch: int) -> None:
    assert batch_tokens(context) == batch
    made = settings(f"ollama:context={context}")
    assert (made["prefill_step"], made["reuse.ubatch"], made["context"]) == (batch, batch, context)


def test_ollama_cuts_long_prompts_in_the_middle_and_shifts_answers() -> None:
    rules = System.parse("ollama:context=512").config.limit(1)
    assert rules.cut(600) == (5, 600 - (512 - 253 - 5))
    assert rules.shift(511) == (5, 253)


def test_ollama_of_the_article_has_neither_threshold_nor_host_list() -> None:
    article = settings("ollama:variant=article")
    assert (article["reuse.n"], article["reuse.share"], article["reuse.host"]) == (1, 0.0, "0")
    assert article["overflow"] == "shift:keep=4"


def test_ollamas_mlx_engine_keeps_8_gib_and_refuses_long_prompts() -> None:
    mlx = settings("ollama:engine=mlx")
    assert (mlx["max_concurrency"], mlx["prefill_step"], mlx["long_prompt"]) == (1, 2048, "error")
    assert (mlx["tiers"], mlx["tiers.ram"], mlx["tiers.replace"]) == ("ram", "8GiB", "lru")
    assert mlx["reuse.checkpoint"] == 8192


# -- mlx-lm -----------------------------------------------------------------------------------------------------------
def test_mlx_lm_keeps_ten_sequences_in_the_order_of_their_storing() -> None:
    now = settings("mlx-lm")
    assert (now["reuse"], now["reuse.count"], now["reuse.order"], now["reuse.bytes"]) == ("prompts", 10, "fifo", None)
    assert (now["max_concurrency"], now["prefill_prompts"], now["prefill_step"]) == (32, 8, 2048)
    assert (now["context"], now["queue"], now["tiers"]) == (None, None, "none")
    article = settings("mlx-lm:variant=article")
    assert (article["reuse.count"], article["max_concurrency"]) == (1, 1)


# -- LM Studio, oMLX, vMLX ---------------------------------------------------------------------------------------------


def test_lm_studio_has_chunks_of_256_tokens_and_four_requests_side_by_side() -> None:
    now = settings("lm-studio")
    assert (now["reuse.block"], now["max_concurrency"], now["prefill_prompts"]) == (256, 4, 1)
    assert (now["tiers"], now["retain"], now["prefill_step"]) == ("ram", 0, 2048)
    assert (now["reuse.match"], now["reuse.hot"], now["reuse.live"], now["reuse.reply"]) == ("block", True, False, True)
    gguf = settings("lm-studio:engine=gguf")
    assert (gguf["reuse"], gguf["reuse.n"], gguf["prefill_step"]) == ("slots", 4, 512)
    article = settings("lm-studio:variant=article")
    assert (article["reuse"], article["reuse.count"], article["tiers"]) == ("prompts", 10, "none")


def test_omlx_lets_32_wait_and_computes_prompts_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 500_000_000_000})())
    now = settings("omlx")
    assert (now["max_concurrency"], now["queue"], now["interleave"], now["prefill_step"]) == (8, 32, "none", 2048)
    assert (now["reuse.block"], now["tiers.ram"], now["tiers.ssd"], now["tiers.replace"]) == (256, "0", "50GB", "lru")
    assert (now["reuse.match"], now["reuse.reply"], now["reuse.live"]) == ("block", True, False)
    assert settings("omlx:max_concurrent_requests=16")["queue"] == 64
    assert settings("omlx:variant=article")["tiers.ram"] == "4GB"


def test_vmlx_has_blocks_of_64_tokens_on_ssd_and_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 500_000_000_000})())
    now = settings("vmlx")
    assert (now["max_concurrency"], now["queue"], now["reuse.block"]) == (1, None, 64)
    assert (now["tiers.ram"], now["tiers.ssd"], now["codec"]) == ("0", "50GB", "raw")
    assert (now["reuse.match"], now["reuse.reply"], now["reuse.opening"]) == ("tail", False, False)
    article = settings("vmlx:variant=article,kv_bits=4")
    assert (article["codec.bits"], article["tiers"], article["tiers.ssd"]) == (4, "snapshot", "10GB")
    assert (article["max_concurrency"], article["prefill_prompts"], article["reuse.block"]) == (32, 8, 64)


# -- the command line and the server ----------------------------------------------------------------------------------
@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_every_server_with_a_limit_of_its_own_takes_a_context(system: System) -> None:
    without_a_setting = {"mlx-lm", "mlx-lm:variant=article", "ollama:engine=mlx"}
    options = {part.name for part in dataclasses.fields(system)}
    assert ("context" in options) == (str(system) not in without_a_setting)
    if "context" in options:
        slots = 4 if str(system) == "llama.cpp:variant=article" else 1
        limited = dataclasses.replace(system, context=4096)  # type: ignore[call-arg]
        assert limited.config.context == 4096 // slots
        prefill = limited.config.prefill_step  # Ollama's depends on the context
        assert limited.config == dataclasses.replace(system.config, context=4096 // slots, prefill_step=prefill)
        assert limited.policy == system.policy and System.parse(str(limited)) == limited


def test_systems_lists_all_with_settings_and_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # wide enough for every setting in one line
    assert main(["systems", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "systems"
    assert [row["system"] for row in document["rows"]] == [str(one) for one in all_systems()]
    assert main(["systems"]) == 0
    shown = capsys.readouterr().out
    assert all(str(one) in shown for one in all_systems())
    assert "truncate-middle:keep=4, shift:keep=4" in shown
    assert main(["systems", "llama.cpp:parallel=2"]) == 0
    assert "server-context.cpp" in capsys.readouterr().out
    assert main(["systems", "nope"]) == 2
    assert "unknown system 'nope'" in capsys.readouterr().err


def test_a_policy_and_a_system_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--policy", "paged", "--system", "omlx"]) == 2
    assert "--policy and --system exclude each other" in capsys.readouterr().err


def test_a_server_takes_the_loop_of_a_system() -> None:
    assert of_system(Policy.parse("full")) == {}
    made = Settings(**of_system(System.parse("ollama")))
    assert (made.max_concurrency, made.prefill_step, made.queue, made.busy_status) == (1, 512, None, 503)
    assert made.decoder == System.parse("ollama").config
    with pytest.raises(KvlabError, match="write one of 429, 503"):
        Settings(busy_status=500)


def test_a_share_of_a_disk_is_whole_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 994_662_584_320})())
    assert share_of_disk(tmp_path / "not" / "there", 10) == "99GB"


def test_a_system_answers_503_with_retry_after_beyond_its_queue() -> None:
    settings = Settings(**of_system(System.parse("omlx")))

    async def fill() -> ApiError:
        limit = ConcurrencyLimit(settings, ServerMetrics({}))
        with contextlib.ExitStack() as stack, pytest.raises(ApiError) as refused:
            for _ in range(8 + 32):
                stack.enter_context(limit.admit(1))
            stack.enter_context(limit.admit(1))
        return refused.value

    error = asyncio.run(fill())
    assert (error.status, error.headers["retry-after"]) == (503, "1")


def test_all_of_a_systems_queue_is_for_the_clients_that_come_first() -> None:
    limit = ConcurrencyLimit(Settings(**of_system(System.parse("omlx"))), ServerMetrics({}))

    async def fill() -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(8 + 32):
                stack.enter_context(limit.admit(1, "a"))
            with pytest.raises(ApiError):
                stack.enter_context(limit.admit(1, "b"))

    asyncio.run(fill())


@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_no_system_takes_the_place_of_a_running_request(system: System) -> None:
    assert system.config.admission == "fifo"


def test_a_system_without_a_limit_lets_any_number_wait() -> None:
    async def fill() -> None:
        limit = ConcurrencyLimit(Settings(**of_system(System.parse("llama.cpp"))), ServerMetrics({}))
        with contextlib.ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(limit.admit(1))

    asyncio.run(fill())
