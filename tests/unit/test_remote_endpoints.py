"""Endpoints of object stores that the environment names, such as a service on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("obstore", reason="the extra `remote` is not installed")

from kvlab.store.remote.client import connect
from kvlab.store.remote.errors import RemoteDown


class Empty(BaseHTTPRequestHandler):
    """Answers that there is no such object."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Empty)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_google_s_protocol_is_spoken_without_tls_only_where_the_environment_allows_it(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"private_key_id": ""}))
    for name in ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "GOOGLE_SERVICE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    closed = connect("gs://bucket/folder", None)
    with pytest.raises(RemoteDown):
        closed.ping()
    closed.close()
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    open_one = connect("gs://bucket/folder", None)
    open_one.ping()
    open_one.close()
