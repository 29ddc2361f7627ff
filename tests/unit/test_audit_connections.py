"""A server that closes a connection has not died: the audit asks on a new one each time."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from kvlab.audit import AuditClient

BODY = json.dumps({"object": "list", "data": [{"id": "one"}]})
ANSWER = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}"


@pytest.fixture
def url() -> Iterator[str]:
    """A server that answers one request of each connection and ends the connection when a second one comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(connection: socket.socket) -> None:
            with connection:
                if connection.recv(65536):
                    connection.sendall(ANSWER.encode())
                    connection.recv(65536)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_the_audit_asks_on_a_new_connection(url):
    with AuditClient(url) as client:
        assert [client.models() for _ in range(3)] == [["one"]] * 3


def test_the_server_of_this_test_does_end_connections(url):
    with httpx.Client() as client:
        assert client.get(f"{url}/v1/models").json()["data"] == [{"id": "one"}]
        with pytest.raises(httpx.HTTPError):
            client.get(f"{url}/v1/models")
