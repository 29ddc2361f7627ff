"""Requests that a shutdown does not wait for: each is told so in its protocol, and the log holds no traceback.

The class: whatever a request is doing when the time to drain is over (answering whole or in a stream, on any endpoint,
or waiting for a place), its client hears 503 with ``retry-after``, or, where the answer has begun, the connection ends.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_kit import Served, endless

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", endless("story")),
    "several": ("/v1/chat/completions", endless("story", n=2)),
    "completion": ("/v1/completions", {"prompt": "story", "max_tokens": 20_000, "logit_bias": {"2297": -100}}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "Say all rules."}], "max_tokens": 20_000}),
}


def when(holds: Callable[[], bool]) -> None:
    """Wait until something is so; a test that waits in vain ends with the server's own time limits."""
    while not holds():
        time.sleep(0.02)


def running(server: Served) -> float:
    totals: dict[str, float] = server.get("/kvlab/state").json()["totals"]
    return totals["running"]


def end(server: Served, threads: list[threading.Thread]) -> None:
    """End the server by SIGTERM: status 0, all clients answered, and no traceback."""
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert server.process.wait(60) == 0
    assert not [line for line in server.log if "Traceback" in line or '"failed"' in line]


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "messages"])
def test_a_whole_answer_that_is_not_waited_for_is_503(tmp_path: Path, name: str) -> None:
    path, body = WHOLE[name]
    with Served("--policy", "paged", "--drain", "1", "--max-concurrency", "1", home=tmp_path) as server:
        got: list[httpx.Response] = []
        # The second one of each waits for a place, or decodes beside the first.
        threads = [threading.Thread(target=lambda: got.append(server.post(path, body))) for _ in range(2)]
        for thread in threads:
            thread.start()
        when(lambda: running(server) >= 2)
        end(server, threads)
    assert [response.status_code for response in got] == [503, 503]
    for response in got:
        assert response.headers["retry-after"]
        assert response.json()["error"]["message"] == "the server is shutting down"


def test_a_message_that_waits_for_a_place_is_503_in_its_protocol(tmp_path: Path) -> None:
    with Served("--policy", "paged", "--drain", "1", "--max-concurrency", "1", home=tmp_path) as server:
        got: list[httpx.Response] = []
        posts = [WHOLE["chat"], WHOLE["messages"]]
        threads = []
        for number, (path, body) in enumerate(posts, start=1):
            threads.append(threading.Thread(target=lambda p=path, b=body: got.append(server.post(p, b))))
            threads[-1].start()
            when(lambda number=number: running(server) >= number)
        end(server, threads)
    said = [response.json() for response in got if response.json().get("type") == "error"]
    assert [answer["error"]["type"] for answer in said] == ["overloaded_error"]


def test_a_stream_that_is_not_waited_for_ends_without_a_traceback(tmp_path: Path) -> None:
    with Served("--policy", "paged", "--drain", "1", home=tmp_path) as server:
        begun, lines = threading.Event(), []

        def read() -> None:
            body = endless("story", stream=True)
            try:
                with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as response:
                    for line in response.iter_lines():
                        lines.append(line)
                        begun.set()
            except httpx.TransportError:
                lines.append("closed")
            finally:
                begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait()
        end(server, [thread])
    assert lines[0].startswith("data: {")
    assert "data: [DONE]" not in lines
