"""A server under load, at its limits, at its end, and as an operator sees it."""

import asyncio
import json
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import httpx
import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.cli.main import main
from kvlab.decoder.scheduler import Scheduler
from kvlab.errors import KvlabError
from kvlab.server import serve
from kvlab.workloads.agent import Agent
from tests.helpers import random_model_folder
from tests.server_kit import Endpoint, Local, Served, chat, endless

KEYS = {"authorization": "Bearer first"}
ADMIN = {"authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def keyed(bundled) -> Iterator[Local]:
    """A server with three keys, few places and small limits."""
    settings = {
        "api_keys": ("first", "second"),
        "admin_keys": ("admin",),
        "max_concurrency": 2,
        "queue": 2,
        "max_body": 300_000,
    }
    with Local("paged", bundled, **settings, heartbeat=0.2, request_seconds=600, prefill_step=64) as server:
        yield server


def test_keys_are_asked_for(keyed):
    for path in ("/v1/models", "/metrics", "/kvlab/state", "/slots"):
        assert keyed.get(path).status_code == 401
        assert keyed.get(path, headers=KEYS).status_code == 200
    refused = keyed.post("/v1/chat/completions", chat("x"), headers={"authorization": "Bearer wrong"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert keyed.post("/v1/messages", {}, headers={"x-api-key": "no"}).json()["type"] == "error"
    assert keyed.get("/health").json()["status"] == "ok"
    assert "kvlab server" in keyed.get("/").text


def test_keys_do_not_share_prompts(keyed):
    body = chat("A prompt of some length, which only one of the two has ever sent before.", max_tokens=2)
    cached = []
    for key in ("first", "first", "second"):
        made = keyed.post("/v1/chat/completions", body, headers={"x-api-key": key}).json()
        cached.append(made["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == cached[2] < cached[1]


def test_oversized_and_broken_requests_are_refused(keyed):
    def post(content: bytes, **headers: str) -> httpx.Response:
        sent = {"content-type": "application/json", **KEYS, **headers}
        return httpx.post(keyed.url + "/v1/chat/completions", content=content, headers=sent, timeout=30)

    assert post(b"{" + b" " * 400_000 + b"}").status_code == 413
    for content in (
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"messages": 5}',
        b"\xff\xfe",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    ):
        made = post(content)
        assert made.status_code == 400, content
        assert made.json()["error"]["message"]
    assert post(b"[" * 100_000).status_code == 400
    assert post(b"{}", origin="https://example.org").status_code == 403
    assert keyed.get("/v1/nothing", headers=KEYS).status_code == 404
    assert keyed.get("/v1/chat/completions", headers=KEYS).status_code == 405


def events(response: httpx.Response) -> Iterator[str]:
    yield from response.iter_lines()


def test_crowds_are_told_to_come_back(keyed):
    body = endless("count", stream=True)
    with httpx.Client(timeout=60, headers=KEYS) as client:
        opened = []
        statuses = []
        for _ in range(6):
            context = client.stream("POST", keyed.url + "/v1/chat/completions", json=body)
            response = context.__enter__()
            opened.append(context)
            statuses.append(response.status_code)
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1
                assert "no more may wait" in json.loads(response.read())["error"]["message"]
        assert statuses == [200] * 3 + [429] * 3  # the last of the four places is for a tenant that holds few
        of_another = {"authorization": "Bearer second"}
        with client.stream("POST", keyed.url + "/v1/chat/completions", json=body, headers=of_another) as other:
            assert other.status_code == 200
        for context in opened:
            context.__exit__(None, None, None)
    idle(keyed)


def idle(server: Endpoint, seconds: float = 120) -> dict:
    """Wait until nothing runs; the totals then. Fails when something still does."""
    until = time.time() + seconds
    while time.time() < until:
        totals = server.get("/kvlab/state", headers=ADMIN).json()["totals"]
        if totals["running"] == 0 and totals["live_bytes"] == totals["warm_bytes"]:
            return totals
        time.sleep(0.05)
    raise AssertionError(
        f"still running: {totals['running']}, live {totals['live_bytes']}, warm {totals['warm_bytes']}"
    )


def test_a_client_that_leaves_is_cancelled(keyed):
    """Measured in tokens: without a cancellation both answers would be written to their ends."""
    before = idle(keyed)["generated_tokens_total"]
    with httpx.stream(
        "POST", keyed.url + "/v1/chat/completions", json=endless("hi", stream=True), headers=KEYS, timeout=30
    ) as response:
        next(events(response))
    idle(keyed)
    leaves = httpx.Timeout(60, read=0.5)  # while it waits for a whole answer
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(keyed.url + "/v1/chat/completions", json=endless("hi"), headers=KEYS, timeout=leaves)
    totals = idle(keyed)
    assert totals["generated_tokens_total"] - before < 20000  # fewer than one of the two answers


def test_long_prefills_show_signs_of_life(keyed, monkeypatch):
    """The prompt is held until the client has seen a sign: on no machine is it through before."""
    seen, step = threading.Event(), Scheduler._step

    def held_step(scheduler: Scheduler) -> None:
        seen.wait(60)
        step(scheduler)

    monkeypatch.setattr(Scheduler, "_step", held_step)
    words = " ".join(str(i) for i in range(1000))
    lines = []
    with httpx.stream(
        "POST",
        keyed.url + "/v1/chat/completions",
        json=chat(words, stream=True, max_tokens=2),
        headers=KEYS,
        timeout=60,
    ) as response:
        for line in events(response):
            lines.append(line)
            if line.startswith(":"):
                seen.set()
    first = next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert any(line.startswith(":") for line in lines[:first])
    assert lines[-2] == "data: [DONE]"


def test_requests_have_a_time_limit(bundled):
    with Local("full", bundled, request_seconds=0.5, heartbeat=0.1) as server:
        made = server.post("/v1/chat/completions", endless("hi"))
        assert (made.status_code, made.json()["error"]["type"]) == (408, "timeout_error")
        with httpx.stream(
            "POST", server.url + "/v1/chat/completions", json=endless("hi", stream=True), timeout=30
        ) as response:
            lines = list(events(response))
        assert any("took longer" in line for line in lines)


def test_the_dashboard_shows_what_metrics_say(keyed):
    assert keyed.post("/v1/chat/completions", chat("One prompt."), headers=KEYS).status_code == 200
    text = keyed.get("/metrics", headers=ADMIN).text
    totals = keyed.get("/kvlab/state", headers=ADMIN).json()["totals"]
    for name in ("prompt_tokens_total", "generated_tokens_total", "running", "ttft_seconds_count"):
        assert float(re.search(rf"^kvlab_{name} (\S+)$", text, re.M).group(1)) == totals[name]
    for reason, number in totals["misses_total"].items():
        assert f'kvlab_misses_total{{reason="{reason}"}} {number}' in text
    computed = totals["prompt_tokens_total"] - sum(totals.get("cached_tokens_total", {}).values())
    assert 0 < sum(totals["computed_tokens_total"].values()) <= computed  # less what was cancelled in the queue


# -- start and end --------------------------------------------------------------------------------------------------


def test_a_server_ends_well_and_keeps_what_it_computed(tmp_path):
    policy = f"tiered:dir={tmp_path / 'store'}"
    request = Agent(turns=1).requests()[0]
    body = {"messages": list(request.messages), "tools": list(request.tools), "max_tokens": 48}
    with Served("--policy", policy, "--drain", "20", home=tmp_path) as server:
        got: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: got.append(server.post("/v1/chat/completions", body)))
        thread.start()
        while server.get("/kvlab/state").json()["totals"]["running"] == 0:
            time.sleep(0.01)
        assert server.terminate() == 0
        thread.join()
        assert got[0].json()["choices"][0]["finish_reason"] == "tool_calls"
    with Served("--policy", policy, home=tmp_path) as server:
        usage = server.post("/v1/chat/completions", body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
    entries = [json.loads(line) for line in server.log]
    [answered] = [entry for entry in entries if entry["event"] == "answered"]
    assert answered["cached_tokens"] == usage["prompt_tokens"] - 1
    assert entries[-1]["event"] == "closing"
    assert "service agent" not in "".join(server.log)  # figures, and nothing of what was said


def test_a_server_says_how_to_use_it_and_what_it_says_works(tmp_path, monkeypatch, capsys):
    """The lines are run as they are printed, with the key in the variable that they name."""
    monkeypatch.setenv("KVLAB_API_KEY", "a-key")
    with Served("--policy", "full", home=tmp_path) as server:
        while not any('"clients"' in line for line in server.log):
            time.sleep(0.01)
        [clients] = [json.loads(line) for line in server.log if '"clients"' in line]
        assert "a-key" not in "".join(server.log)
        asked = subprocess.run(["sh", "-c", clients["curl"]], capture_output=True, text=True, timeout=60)
        said = json.loads(asked.stdout)["choices"][0]["message"]["content"]
        exec(clients["Python"], {})
        assert capsys.readouterr().out == f"{said}\n"
        *settings, program = clients["Claude Code"].split()
        assert program == "claude"
        for setting in settings:
            name, _, value = setting.partition("=")
            monkeypatch.setenv(name, os.path.expandvars(value))
        question = [{"role": "user", "content": "Say hello."}]
        made = anthropic.Anthropic().messages.create(model="claude-any", messages=question, max_tokens=64)
        assert made.content[0].text == said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "refusing to listen"),
        (["--policy", "nonsense"], "nonsense"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--live-memory", "lots"], "lots"),
    ],
)
def test_impossible_servers_are_refused_in_one_line(options, words, capfd, monkeypatch):
    logger = logging.getLogger("kvlab.server")
    for name in ("handlers", "propagate", "level"):  # the command sets these for its whole process
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    assert main(["serve", "--port", "0", *options]) == 2
    printed = capfd.readouterr()
    [line] = [line for line in printed.err.splitlines() if not line.startswith("{")]
    assert words in line
    assert printed.out == ""


def test_from_a_notebook(bundled):
    with serve("paged", bundled) as handle:
        assert httpx.get(handle.url + "/health").json()["models"] == ["tiny"]
        assert handle.url in handle._repr_html_()
        port = int(handle.url.rpartition(":")[2])
        with pytest.raises(KvlabError, match="cannot listen"):
            serve("paged", bundled, port=port)
        with pytest.raises(KvlabError, match="no setting 'keys'; there are host"):
            serve("paged", bundled, keys=("x",))
        with pytest.raises(KvlabError, match="lots"):
            serve("paged", bundled, live_memory="lots")
    handle.stop()
    assert "stopped" in handle._repr_html_()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# -- several models, live memory, slots -----------------------------------------------------------------------------


def test_models_come_and_go_with_memory(tmp_path):
    folders = [random_model_folder("llama", tmp_path / name, seed=i) for i, name in enumerate(("one", "two"))]
    size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
    models = {folder.name: folder for folder in folders}
    with Local("paged", models, model_memory=int(1.5 * size)) as server:
        answers = {}
        for name in ("one", "two", "one"):
            made = server.post("/v1/chat/completions", chat("hello", model=name)).json()
            assert made["model"] == name
            answers.setdefault(name, made["choices"][0]["message"]["content"])
            assert made["choices"][0]["message"]["content"] == answers[name]
            assert server.get("/health").json()["models"] == [name]
        assert {m["id"] for m in server.get("/v1/models").json()["data"]} == {"one", "two"}


def test_live_memory_is_a_limit(bundled):
    with Local("full", bundled, live_memory=4_000_000) as server:
        assert server.post("/v1/chat/completions", chat("hello")).status_code == 200
        made = server.post("/v1/chat/completions", chat("hello", max_tokens=20000))
        assert made.status_code == 400
        assert "live KV" in made.json()["error"]["message"]
        with httpx.Client(timeout=60) as client:
            threads = [
                threading.Thread(
                    target=lambda: done.append(
                        client.post(
                            server.url + "/v1/chat/completions", json=endless("hello", max_tokens=100)
                        ).status_code
                    )
                )
                for _ in range(6)
            ]
            done: list[int] = []
            for thread in threads:
                thread.start()
            most = 0.0
            while any(thread.is_alive() for thread in threads):
                totals = server.get("/kvlab/state").json()["totals"]
                most = max(most, sum(totals["live_bytes"].values()))
                time.sleep(0.02)
            assert done == [200] * 6
            assert 0 < most <= 4_000_000


def test_answers_go_on_where_they_were_after_a_pause(bundled, monkeypatch):
    array = {"type": "array", "items": {"type": "integer", "maximum": 999}, "minItems": 30, "maxItems": 40}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": array}}
    bodies = [endless(f"Count to {i}.", max_tokens=160, seed=i, temperature=0.7, logprobs=True) for i in range(3)]
    bodies += [chat(f"Count {i}.", max_tokens=160, seed=i, temperature=0.7, response_format=form) for i in range(3)]
    pauses = []
    pause = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda self, job: (pauses.append(job), pause(self, job)))

    def answers(server: Local) -> list[dict]:
        with ThreadPoolExecutor(len(bodies)) as threads:
            made = threads.map(lambda body: server.post("/v1/chat/completions", body).json(), bodies)
            return [answer["choices"][0] for answer in made]

    with Local("paged", bundled) as server:
        wanted = answers(server)
    assert not pauses
    with Local("paged", bundled, live_memory=2_000_000) as server:
        got = answers(server)
    assert pauses
    for a, b in zip(wanted, got, strict=True):
        assert a["message"] == b["message"]
        tokens, again = ((choice["logprobs"] or {"content": []})["content"] for choice in (a, b))
        assert [entry["token"] for entry in tokens] == [entry["token"] for entry in again]
        assert [e["logprob"] for e in tokens] == pytest.approx([e["logprob"] for e in again], abs=1e-3)
    assert all(30 <= len(json.loads(choice["message"]["content"])) <= 40 for choice in got[3:])


def test_slots_are_saved_restored_and_erased_by_name(bundled, tmp_path, monkeypatch):
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path))
    with Local("paged", bundled) as server:
        body = chat("Some long question about many things, asked once.", max_tokens=4)
        made = server.post("/v1/chat/completions", body).json()
        saved = server.post(f"/slots/{made['id']}?action=save", {"filename": "mine"}).json()
        assert saved["n_saved"] >= made["usage"]["prompt_tokens"]
        assert server.get("/slots").json()[0]["filename"] == "mine"
        assert server.post("/slots/0?action=save", {"filename": "../x"}).status_code == 400
        assert server.post("/slots/nobody?action=save", {"filename": "x"}).status_code == 404
    with Local("paged", bundled) as server:
        assert server.post("/slots/0?action=restore", {"filename": "mine"}).json()["n_restored"] == saved["n_saved"]
        usage = server.post("/v1/chat/completions", body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
        [file] = Path(tmp_path).rglob("mine.kv")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert "damaged" in server.post("/slots/0?action=restore", {"filename": "mine"}).json()["error"]["message"]
        server.post("/slots/0?action=erase", {"filename": "mine"})
        assert server.post("/slots/0?action=restore", {"filename": "mine"}).status_code == 404


# -- load -----------------------------------------------------------------------------------------------------------


def stuff_of(process: int) -> tuple[int, int]:
    """File handles and threads of a process."""
    if Path("/proc").is_dir():
        return len(os.listdir(f"/proc/{process}/fd")), len(os.listdir(f"/proc/{process}/task"))
    files, threads = (  # macOS has no /proc
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["lsof", "-p", str(process), "-F", "f"], ["ps", "-M", "-p", str(process)])
    )
    return files.count("\nf"), len(threads.splitlines()) - 1


WANTED = ("right", "left", "refused")


async def crowd(url: str, clients: int, seconds: float) -> dict[str, int]:
    """Streaming clients that check their own answers, leave at random, and send nonsense in between.

    They stop after ``seconds``, or on a slow machine when each of these has happened.
    """
    counts = {"right": 0, "wrong": 0, "left": 0, "refused": 0, "busy": 0, "failed": 0}
    until = time.time() + seconds

    async def one(number: int) -> None:
        rng = random.Random(number)
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=2)) as client:
            while time.time() < until or (time.time() < until + 300 and not all(map(counts.get, WANTED))):
                kind = rng.random()
                if kind < 0.1:
                    bad = rng.choice([{"messages": []}, {"x": "y" * 400_000}, chat("hi", temperature=50)])
                    made = await client.post(url + "/v1/chat/completions", json=bad)
                    counts["refused" if 400 <= made.status_code < 500 else "failed"] += 1
                    continue
                # Greedy and counted out beforehand: what this client must hear, and nobody else.
                word = f"{rng.randrange(1000):03d}"
                told = chat(f"The code of @mira is #{word}.", stream=True, max_tokens=rng.randrange(4, 24))
                told |= {"logit_bias": {str(forced[word]): 100}}
                heard = 0
                leaves = rng.randrange(1, 6) if kind < 0.3 else 10**9
                async with client.stream("POST", url + "/v1/chat/completions", json=told) as response:
                    if response.status_code == 429:
                        counts["busy"] += 1
                        await asyncio.sleep(0.2)
                        continue
                    text = ""
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            made = json.loads(line[6:])
                            if "error" in made:
                                counts["failed"] += 1
                            text += "".join(c["delta"].get("content") or "" for c in made.get("choices", []))
                            heard += 1
                            if heard > leaves:
                                break
                if heard > leaves:
                    counts["left"] += 1
                else:
                    counts["right" if text == word * told["max_tokens"] else "wrong"] += 1

    forced = FORCED
    await asyncio.gather(*(one(number) for number in range(clients)))
    return counts


FORCED: dict[str, int] = {}


@pytest.mark.parametrize(("clients", "seconds"), [(16, 20), pytest.param(64, 120, marks=pytest.mark.soak)])
def test_a_crowd_gets_its_own_answers_and_leaves_nothing_behind(bundled, tmp_path, clients, seconds):
    FORCED.update({f"{i:03d}": bundled.encode(f"{i:03d}")[0] for i in range(1000)})
    assert all(len(bundled.encode(word)) == 1 for word in FORCED)
    with Served("--policy", "paged:block=16", "--max-body", "300KB", "--queue", "20", home=tmp_path) as server:
        server.post("/v1/chat/completions", chat("hello"))
        before = stuff_of(server.process.pid)
        counts = asyncio.run(crowd(server.url, clients, seconds))
        assert counts["wrong"] == counts["failed"] == 0, counts
        assert all(map(counts.get, WANTED)), counts
        idle(server)
        time.sleep(1)
        after = stuff_of(server.process.pid)
        assert after[0] <= before[0] + 4, (before, after)
        assert after[1] <= before[1] + 4, (before, after)
        assert not [line for line in server.log if '"failed"' in line]
        print(counts, before, after)


@pytest.mark.parametrize(
    ("phases", "examples"), [("coverage", 5), pytest.param("coverage,fuzzing,stateful", 40, marks=pytest.mark.soak)]
)
def test_requests_that_the_openapi_description_allows_never_break_the_server(bundled, tmp_path, phases, examples):
    with Local("paged", bundled, max_tokens=8, request_seconds=2, heartbeat=0.5) as server:
        options = ["--checks", "not_a_server_error", "--phases", phases, "--suppress-health-check", "all"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *options]
        made = subprocess.run(
            [*command, "--max-examples", str(examples), "--seed", "1"], capture_output=True, text=True, cwd=tmp_path
        )
        assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-1000:]
        print(made.stdout[-1500:])
