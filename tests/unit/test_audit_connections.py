"""A server that closes an idle connection has not died: the audit asks on a new one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kvlab.audit import AuditClient
from kvlab.audit import client as audit_client

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


def test_a_connection_that_was_idle_is_not_used_again(url, monkeypatch):
    monkeypatch.setattr(audit_client, "MAX_IDLE_CONNECTION_S", 0.05)
    with AuditClient(url) as client:
        assert client.models() == ["one"]
        time.sleep(0.2)
        assert client.models() == ["one"]


def test_the_server_of_these_tests_does_end_connections(url, monkeypatch):
    monkeypatch.setattr(audit_client, "MAX_IDLE_CONNECTION_S", 60.0)
    with AuditClient(url) as client:
        assert client.models() == ["one"]
        assert client.models() == [], "the second request met the end of the connection"
