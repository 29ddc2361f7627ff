"""Clients that cost too much: each is refused or dropped, and others are served as if it were not there."""

import json
import resource
import select
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import kvlab  # noqa: F401 - before MLX
from kvlab.server.connections import FREE_PIECES, MAX_PIPELINED_BYTES, PIECE_PAUSE_SECONDS, HttpProtocol
from kvlab.server.generation.prompt_cache import PromptCache
from kvlab.server.http_server import KEEP_ALIVE_SECONDS
from tests.processes import environment
from tests.server_kit import Endpoint, Local, Served, chat, endless

CHAT = "/v1/chat/completions"
UNREAD = endless("count", stream=True, logprobs=True, top_logprobs=20)
"""About two kilobytes a token."""


def connect(url: str, receive_buffer: int = 0) -> socket.socket:
    parts = urlsplit(url)
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(60)
    made.connect((parts.hostname, parts.port))
    return made


def written(path: str, body: Any, *headers: str) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def is_closed(client: socket.socket, seconds: float = 60) -> bool:
    """Whether the server closes a connection in this time; what it sends before is read."""
    until = time.monotonic() + seconds
    while select.select([client], [], [], max(0, until - time.monotonic()))[0]:
        try:
            if not client.recv(65536):
                return True
        except ConnectionError:
            return True
    return False


def gauge(server: Endpoint, name: str, **options: Any) -> float:
    lines = server.get("/metrics", **options).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"kvlab_{name} ")))


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not become true"
        time.sleep(0.02)


def rss(process: int) -> int:
    """Resident bytes of a process."""
    out = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True).stdout
    return int(out) * 1024


@pytest.fixture(scope="module")
def hasty(bundled) -> Iterator[Local]:
    """A server with little patience and few places."""
    patience = {"header_seconds": 1, "body_seconds": 5, "send_seconds": 0.5, "heartbeat": 0.1}
    with Local("full", bundled, max_concurrency=4, queue=0, max_connections=24, **patience) as server:
        yield server


# -- connections ----------------------------------------------------------------------------------------------------


def test_thousands_of_silent_sockets_shut_nobody_out(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip(f"this process may have {hard} file handles only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    with Served("--policy", "full", home=tmp_path) as server, ExitStack() as stack:
        for _ in range(2150):
            stack.enter_context(closing(connect(server.url)))
        assert server.post(CHAT, chat("hello")).status_code == 200
        assert gauge(server, "connections") <= gauge(server, "connections_limit") <= 512
    assert len(server.log) < 20, server.log[:5]


def test_headers_must_arrive_in_time(hasty):
    for begin in (b"", b"GET / HTTP/1.1\r\nHost: local", written("/health", {})[:20]):
        with closing(connect(hasty.url)) as client:
            client.sendall(begin)
            assert is_closed(client)


def test_a_second_header_on_a_connection_must_arrive_in_time_too(hasty):
    with closing(connect(hasty.url)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert is_closed(client, KEEP_ALIVE_SECONDS / 2)  # later every idle connection is closed


def test_bytes_that_come_one_by_one_do_not_extend_the_time(hasty):
    with closing(connect(hasty.url)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 120:
                client.sendall(b"x")
                time.sleep(0.02)


COUNT = written("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x" * 600}]})
HEAD, BODY = COUNT.split(b"\r\n\r\n")
CHUNKED = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
IN_PIECES = {
    "header": ([HEAD[i : i + 1] for i in range(len(HEAD))], b"\r\n\r\n" + BODY),
    "body": ([HEAD + b"\r\n\r\n", *(BODY[i : i + 2] for i in range(0, 600, 2))], BODY[600:]),
    "chunks": (
        [CHUNKED + b"\r\n\r\n", *(b"2\r\n%s\r\n" % BODY[i : i + 2] for i in range(0, 600, 2))],
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY[600:]), BODY[600:]),
    ),
}
"""The same request by where small pieces of it come, and the rest, which comes whole."""


@pytest.mark.parametrize("where", IN_PIECES)
def test_many_small_pieces_of_a_request_are_read_together(bundled, monkeypatch, where):
    """The event loop has as many turns for them as the time has pauses, and the request is answered."""
    reads, real = [], HttpProtocol.data_received

    def counted(self, data):
        reads.append(len(data))
        real(self, data)

    monkeypatch.setattr(HttpProtocol, "data_received", counted)
    pieces, rest = IN_PIECES[where]
    with Local("full", bundled) as server, closing(connect(server.url)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.005)
        client.sendall(rest)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        most = FREE_PIECES + 4 + (time.monotonic() - began) / PIECE_PAUSE_SECONDS
    assert len(reads) <= most
    assert sum(reads) == sum(map(len, pieces)) + len(rest)


def test_requests_behind_a_request_are_answered_in_order_or_closed_where_they_are_too_many(bundled):
    one = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with Local("full", bundled) as server:
        with closing(connect(server.url)) as client:
            client.sendall(one * 20)
            heard = b""
            while heard.count(b"HTTP/1.1 200") < 20:
                heard += client.recv(65536)
        with closing(connect(server.url)) as client, suppress(ConnectionError):
            client.sendall(one * (4 * MAX_PIPELINED_BYTES // len(one)))
            assert is_closed(client)
        assert server.get("/health").status_code == 200


def test_small_requests_one_after_the_other_are_read_at_once(bundled, monkeypatch):
    pauses = []
    monkeypatch.setattr(HttpProtocol, "_read_on", lambda self: pauses.append(self))
    with Local("full", bundled) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(5 * FREE_PIECES):
            assert client.get("/health").status_code == 200
    assert not pauses


@pytest.mark.parametrize("size", [33_000, 300_000])
def test_large_headers_are_refused(hasty, size):
    with closing(connect(hasty.url)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * size)
        assert is_closed(client)
    for name in ("authorization", "x-api-key", "cookie"):
        made = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + name.encode() + b": " + b"k" * size + b"\r\n\r\n"
        with closing(connect(hasty.url)) as client:
            client.sendall(made)
            assert client.recv(4096).startswith(b"HTTP/1.1 400")


def test_headers_of_usual_sizes_and_a_body_behind_them_are_read(bundled):
    body = {"messages": [{"role": "user", "content": "x" * 60_000}]}
    with Local("full", bundled) as server, closing(connect(server.url)) as client:
        client.sendall(written("/v1/messages/count_tokens", body, "X-Trace: " + "a" * 20_000))
        assert client.recv(4096).decode().startswith("HTTP/1.1 200")


def test_bodies_in_tiny_pieces_are_refused(hasty):
    with closing(connect(hasty.url)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\nx\r\n" * 3000)
        assert client.recv(4096).startswith(b"HTTP/1.1 400")
        assert is_closed(client)


def test_bodies_must_arrive_in_time(hasty):
    with closing(connect(hasty.url)) as client:
        client.sendall(written(CHAT, chat("x"))[:-5])
        assert client.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "begin", [b"", b"GET /he", b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"]
)
def test_beyond_the_limit_the_longest_idle_connection_is_closed(bundled, begin):
    with Local("full", bundled, max_connections=8) as server, ExitStack() as stack:
        clients = [stack.enter_context(closing(connect(server.url))) for _ in range(8)]
        for client in clients:
            client.sendall(begin)
        wait_for(lambda: len(select.select([], clients, [], 0)[1]) == 8)
        assert server.get("/health").status_code == 200
        assert is_closed(clients[0])
        assert gauge(server, "connections") <= gauge(server, "connections_limit") == 8


def test_a_process_without_file_handles_drops_connections_and_logs_nothing(tmp_path):
    """The accept loop neither spins nor logs; it serves again as soon as handles are free."""
    script = textwrap.dedent("""
        import asyncio, os, resource, socket, sys
        from kvlab.server.listening_socket import bound_socket
        async def answer(reader, writer):
            writer.write(b"hello"); await writer.drain(); await reader.read(1); writer.close()
        async def main():
            errors = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
            listening = bound_socket("127.0.0.1", 0)
            server = await asyncio.start_server(answer, sock=listening, backlog=64)
            used = max(int(fd) for fd in os.listdir("/dev/fd")) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            print(listening.getsockname()[1], flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            print(len(errors), flush=True)
            os._exit(0)
        asyncio.run(main())
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    with child, ExitStack() as stack:
        assert child.stdout is not None and child.stdin is not None
        url = f"http://127.0.0.1:{int(child.stdout.readline())}"
        clients = [stack.enter_context(closing(connect(url))) for _ in range(40)]
        heard = []
        for client in clients:
            try:
                heard.append(client.recv(5))
            except ConnectionError:
                heard.append(b"")
        assert 0 < heard.count(b"hello") < 40
        for client in clients:
            client.close()
        wait_for(lambda: answered(url))
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == "0"


def answered(url: str) -> bool:
    with closing(connect(url)) as client:
        try:
            return client.recv(5) == b"hello"
        except ConnectionError:
            return False


# -- clients that do not read ---------------------------------------------------------------------------------------


def wait_until_cancelled(server: Endpoint, number: int) -> None:
    """Wait until so many requests have ended as cancelled, and none runs."""
    wait_for(lambda: sum(row["ended"] == "cancelled" for row in server.get("/kvlab/state").json()["latest"]) >= number)
    wait_for(lambda: gauge(server, "running") == 0)


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": False}])
def test_clients_that_never_read_lose_their_places(bundled, fields):
    with Local("full", bundled, max_concurrency=4, queue=0, send_seconds=0.5) as server, ExitStack() as stack:
        number = 4 // fields.get("n", 1)
        for _ in range(number):
            client = stack.enter_context(closing(connect(server.url, receive_buffer=1024)))
            client.sendall(written(CHAT, UNREAD | fields))
        wait_until_cancelled(server, number)
        assert server.post(CHAT, chat("hello")).status_code == 200


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"logprobs": False, "n": 4}])
def test_the_deadline_of_a_request_covers_its_sending(bundled, fields):
    """Whatever a client reads now and then, its places end with its time."""
    with Local("full", bundled, max_concurrency=4, queue=0, request_seconds=2, send_seconds=1000) as server:
        with closing(connect(server.url, receive_buffer=1024)) as client:
            client.sendall(written(CHAT, UNREAD | fields))
            wait_until_cancelled(server, 1)
            assert is_closed(client)
        assert server.post(CHAT, chat("hello", max_tokens=1)).status_code == 200


def test_an_unread_stream_of_messages_ends_as_well(bundled):
    body = {"messages": [{"role": "user", "content": "Tell me all the rules."}], "max_tokens": 20000, "stream": True}
    with Local("full", bundled, request_seconds=3) as server, ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(closing(connect(server.url, receive_buffer=1024)))
            client.sendall(written("/v1/messages", body))
        wait_for(lambda: len(server.get("/kvlab/state").json()["latest"]) == 4)
        assert gauge(server, "running") == 0


def test_followers_of_the_state_are_limited(bundled):
    with Local("full", bundled) as server, ExitStack() as stack:
        statuses = []
        for _ in range(33):
            opened = httpx.stream("GET", server.url + "/kvlab/events", timeout=30)
            statuses.append(stack.enter_context(opened).status_code)
        assert statuses == [200] * 32 + [429]


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_that_no_context_holds_are_refused_before_they_are_encoded(bundled, monkeypatch):
    encoded: list[int] = []
    encode = type(bundled).encode
    monkeypatch.setattr(type(bundled), "encode", lambda self, text: (encoded.append(len(text)), encode(self, text))[1])
    huge = "many words " * 700_000
    with Local("paged", bundled) as server:
        for path, body in (
            (CHAT, chat(huge)),
            ("/v1/completions", {"prompt": huge}),
            ("/v1/completions", {"prompt": ["hi", huge]}),
            ("/v1/messages", chat(huge)),
            ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": huge}]}),
            (CHAT, chat("hi", tools=[{"function": {"name": "f", "parameters": {"description": huge}}}])),
            ("/v1/messages", chat("hi", system=huge)),
        ):
            made = server.post(path, body)
            assert made.status_code == 400, (path, made.text[:200])
            assert "context" in made.text
        assert max(encoded, default=0) < 1_000_000
        assert server.post(CHAT, {"messages": [{"role": "user", "content": "x" * 8_000_000}]}).status_code == 413


def test_refused_prompts_leave_no_memory_behind(tmp_path):
    with Served("--policy", "full", "--max-body", "32MB", home=tmp_path) as server:
        server.post(CHAT, chat("hello"))
        body = chat("many words " * 700_000)
        server.post(CHAT, body)
        before = rss(server.process.pid)
        for size in (700_000, 1_000_000, 2_800_000):
            assert server.post(CHAT, chat("many words " * size)).status_code == 400
        wait_for(lambda: rss(server.process.pid) - before < 150_000_000)


def test_places_are_taken_before_a_prompt_is_rendered(bundled, monkeypatch):
    rendered: list[Any] = []
    render = PromptCache.render
    monkeypatch.setattr(PromptCache, "render", lambda self, *a, **k: (rendered.append(a), render(self, *a, **k))[1])
    with Local("full", bundled, max_concurrency=1, queue=0) as server:
        with httpx.stream("POST", server.url + CHAT, json=endless("hi", stream=True), timeout=60) as running:
            lines = running.iter_lines()
            next(lines)
            assert len(rendered) == 1
            for path in (CHAT, "/v1/messages", "/v1/messages/count_tokens"):
                assert server.post(path, chat("hello")).status_code == 429
            assert len(rendered) == 1
        wait_for(lambda: gauge(server, "running") == 0)
        assert server.post(CHAT, chat("hello", n=2)).status_code == 400
        assert server.post("/v1/completions", {"prompt": ["a", "b"]}).status_code == 400
        assert len(rendered) == 1


class HeldRenderer:
    """Holds every rendering until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.texts: list[str] = []
        render = PromptCache.render

        def held(cache: PromptCache, messages: Any, *arguments: Any, **options: Any) -> Any:
            self.texts.append(messages[-1]["content"])
            self.began.set()
            assert self.go_on.wait(60)
            return render(cache, messages, *arguments, **options)

        monkeypatch.setattr(PromptCache, "render", held)


def test_clients_that_leave_while_they_wait_are_never_rendered(bundled, monkeypatch):
    held = HeldRenderer(monkeypatch)
    with Local("full", bundled) as server:
        first = threading.Thread(target=lambda: server.post(CHAT, chat("first")))
        first.start()
        assert held.began.wait(60)
        for path in (CHAT, "/v1/messages", "/v1/messages/count_tokens"):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + path, json=chat("left"), timeout=0.3)
        wait_for(lambda: gauge(server, "running") == 1)
        held.go_on.set()
        first.join()
        assert server.post(CHAT, chat("last")).status_code == 200
        assert held.texts == ["first", "last"]


def test_large_prompts_do_not_hold_up_the_rendering_of_small_ones(bundled, monkeypatch):
    held = HeldRenderer(monkeypatch)
    held.go_on.set()
    with Local("full", bundled) as server:
        held.go_on.clear()
        large = threading.Thread(target=lambda: server.post(CHAT, chat("a " * 40_000, max_tokens=1)))
        large.start()
        assert held.began.wait(60)
        small: list[int] = []
        other = threading.Thread(target=lambda: small.append(server.post(CHAT, chat("hi")).status_code))
        other.start()
        wait_for(lambda: len(held.texts) == 2)  # both are being rendered
        held.go_on.set()
        other.join()
        large.join()
        assert small == [200]


def test_the_deadline_covers_rendering(bundled, monkeypatch):
    held = HeldRenderer(monkeypatch)
    with Local("full", bundled, request_seconds=0.3) as server:
        try:
            for body in (chat("hi"), chat("hi", stream=True)):
                made = server.post(CHAT, body)
                assert (made.status_code, made.json()["error"]["type"]) == (408, "timeout_error")
            assert server.post("/v1/messages/count_tokens", chat("hi")).status_code == 408
            assert gauge(server, "running") == 0
        finally:
            held.go_on.set()


# -- the end --------------------------------------------------------------------------------------------------------


def test_followers_idle_sockets_and_incomplete_requests_do_not_delay_the_end(tmp_path):
    with Served("--policy", "full", "--drain", "600", home=tmp_path) as server, ExitStack() as stack:
        follower = stack.enter_context(httpx.stream("GET", server.url + "/kvlab/events", timeout=60))
        followed = follower.iter_lines()
        assert next(followed).startswith("data:")
        clients = [stack.enter_context(closing(connect(server.url, receive_buffer=1024))) for _ in range(4)]
        clients[1].sendall(b"GET / HT")
        clients[2].sendall(written(CHAT, chat("x"))[:-5])
        clients[3].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)  # answers that are never read
        assert server.get("/health").status_code == 200
        assert server.terminate() == 0  # which waits for less than the time to drain


# -- pages and tenants ----------------------------------------------------------------------------------------------

PREFLIGHTS = {
    "openai": "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout",
    "anthropic": "anthropic-dangerous-direct-browser-access,anthropic-version,content-type,x-api-key,x-stainless-os",
}


@pytest.fixture(scope="module")
def open_to_pages(bundled) -> Iterator[Local]:
    with Local("full", bundled, api_keys=("key",), allow_origins=("https://app.example",)) as server:
        yield server


@pytest.mark.parametrize("client", PREFLIGHTS)
@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "app://obsidian.md", "vscode-webview://abc", "https://app.example"]
)
def test_pages_that_are_let_in_can_ask_and_read(open_to_pages, client, origin):
    path = CHAT if client == "openai" else "/v1/messages"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": PREFLIGHTS[client]}
    allowed = httpx.options(open_to_pages.url + path, headers={"origin": origin, **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert set(PREFLIGHTS[client].split(",")) <= set(allowed.headers["access-control-allow-headers"].split(","))
    for key, status in (("key", 200), ("wrong", 401)):
        made = open_to_pages.post(path, chat("hi"), headers={"origin": origin, "x-api-key": key})
        assert made.status_code == status
        assert made.headers["access-control-allow-origin"] == origin
        assert "origin" in made.headers["vary"].lower()
    streamed = open_to_pages.post(path, chat("hi", stream=True), headers={"origin": origin, "x-api-key": "key"})
    assert streamed.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin", ["https://example.org", "http://[bad", "null", "https://app.example.org", "http://]"]
)
def test_other_pages_are_refused_in_words(open_to_pages, origin):
    headers = {"origin": origin, "x-api-key": "key", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "POST", "GET"):
        made = httpx.request(method, open_to_pages.url + CHAT, headers=headers)
        assert made.status_code == 403
        assert "--allow-origin" in made.json()["error"]["message"]
        assert "access-control-allow-origin" not in made.headers


@pytest.mark.parametrize(
    ("host", "status"), [("evil.example:80", 403), ("[bad", 400), ("localhost:1", 200), ("[::1]:9", 200)]
)
def test_host_names_are_checked(open_to_pages, host, status):
    made = open_to_pages.get("/v1/models", headers={"host": host, "x-api-key": "key"})
    assert made.status_code == status


def test_each_key_sees_its_own_requests_and_an_admin_key_all(bundled):
    keys = {"api_keys": ("one", "two"), "admin_keys": ("admin",)}
    with Local("paged", bundled, **keys) as server:

        def get(path: str, key: str) -> httpx.Response:
            return server.get(path, headers={"x-api-key": key})

        for key, times in (("one", 2), ("two", 1)):
            for _ in range(times):
                server.post(CHAT, chat("hi"), headers={"x-api-key": key})
        with httpx.stream(
            "POST", server.url + CHAT, json=endless("hi", stream=True), headers={"x-api-key": "one"}, timeout=60
        ) as running:
            lines = running.iter_lines()
            next(lines)
            states = {key: get("/kvlab/state", key).json() for key in ("one", "two", "admin")}
        assert {key: len(state["live"]) for key, state in states.items()} == {"one": 1, "two": 0, "admin": 1}
        assert {key: len(state["latest"]) for key, state in states.items()} == {"one": 2, "two": 1, "admin": 3}
        assert {key: state["totals"]["running"] for key, state in states.items()} == {"one": 1, "two": 0, "admin": 1}
        assert sum(states["two"]["totals"]["finished_total"].values()) == 1
        assert sum(states["admin"]["totals"]["finished_total"].values()) == 3
        shared = {"live_bytes", "store_bytes", "connections", "request_bodies_bytes", "evicted_rows_total"}
        assert shared <= set(states["admin"]["totals"])
        assert not shared & set(states["two"]["totals"])
        prompts = states["two"]["totals"]["prompt_tokens_total"]
        text = get("/metrics", "two").text
        assert f"kvlab_prompt_tokens_total {prompts}" in text
        assert "kvlab_store_bytes" not in text
        assert "kvlab_store_bytes" in get("/metrics", "admin").text
        with httpx.stream("GET", server.url + "/kvlab/events", headers={"x-api-key": "two"}, timeout=30) as followed:
            first = json.loads(next(followed.iter_lines()).removeprefix("data: "))
        assert [row["id"] for row in first["latest"]] == [row["id"] for row in states["two"]["latest"]]
        assert get("/slots", "two").json() == []


def test_the_only_key_sees_all(bundled):
    with Local("paged", bundled, api_keys=("one",)) as server:
        assert "store_bytes" in server.get("/kvlab/state", headers={"x-api-key": "one"}).json()["totals"]


def test_memories_are_shown_beside_their_limits(bundled):
    with Local("paged", bundled) as server:
        server.post(CHAT, chat("hi"))
        for name in ("recent_answers_bytes", "request_bodies_bytes", "connections"):
            assert 0 <= gauge(server, name) <= gauge(server, f"{name}_limit")
        assert gauge(server, "recent_answers_bytes") > 0
        for tier in ("ram", "ssd"):
            label = f'{{model="tiny",tier="{tier}"}}'
            assert 0 <= gauge(server, f"answer_bytes{label}") <= gauge(server, f"answer_bytes_limit{label}")
        label = '{model="tiny",tier="ram"}'
        assert 0 < gauge(server, f"store_bytes{label}") <= gauge(server, f"store_bytes_limit{label}")
