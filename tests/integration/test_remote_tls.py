"""A remote tier over Redis with TLS: certificates are checked, and what TLS itself sends is taken for no answer."""

from __future__ import annotations

import contextlib
import functools
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.remote_kit import START_S, free_port, needs_redis, redis_program, redis_server, shared, wait_for_port
from tests.store_kit import BLOCK, fetch, put

TALK = list(range(1000, 1000 + 5 * BLOCK + 3))


def filled(url: str) -> None:
    with shared(url) as store:
        put(store, TALK)
        assert store.flush()


def knows_tls() -> bool:
    """Tell whether the server misses only a certificate."""
    program = redis_program()
    assert program is not None
    asked = [program, "--port", "0", "--tls-port", str(free_port())]
    return b"No tls-cert-file configured" in subprocess.run(asked, capture_output=True, timeout=START_S).stdout


@dataclass(frozen=True)
class TlsServer:
    """Names a Redis server that speaks TLS, and the file of the certificate it shows."""

    url: str
    certificate: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TlsServer]]:
    """A function that starts a Redis server which speaks one version of TLS."""
    pytest.importorskip("redis", reason="the extra `remote` is not installed")
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl here to make a certificate")
    if not knows_tls():
        pytest.skip("this server was built without TLS")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    with contextlib.ExitStack() as stack:

        def started(version: str) -> TlsServer:
            port = free_port()
            options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
            options += ["--tls-auth-clients", "no", "--tls-protocols", version]
            stack.enter_context(redis_server(folder, *options))
            wait_for_port(port)
            return TlsServer(f"rediss://localhost:{port}/0", certificate)

        yield functools.cache(started)


@needs_redis
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_blocks_pass_a_line_with_tls_and_an_unknown_certificate_is_refused(
    tls: Callable[[str], TlsServer], version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = tls(version)
    with shared(server.url) as store:
        put(store, TALK)
        store.flush()
        assert store.stats()["trouble"] and not store.stats()["remote_blocks_sent"]
    assert "certificate" in caplog.text.lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    filled(server.url)
    with shared(server.url) as store:
        assert fetch(store, TALK).tokens == len(TALK) and store.stats()["trouble"] == ""


@needs_redis
def test_tickets_of_tls_1_3_that_come_after_the_handshake_are_no_trouble(
    tls: Callable[[str], TlsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends them when a client has connected; here each connection waits for them before it is used."""
    import redis

    server, connect_at_once, waited = tls("TLSv1.3"), redis.Connection.connect, list[bool]()

    def connect_late(connection: Any) -> None:
        is_new = connection._sock is None
        connect_at_once(connection)
        if is_new and isinstance(connection, redis.SSLConnection):
            waited.append(bool(select.select([connection._sock], [], [], START_S)[0]))

    monkeypatch.setattr(redis.SSLConnection, "connect", connect_late)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    filled(server.url)
    with shared(server.url) as store:
        assert fetch(store, TALK).tokens == len(TALK)
        assert (store.stats()["trouble"], store.stats()["remote_trips"]) == ("", 0)
    assert waited and all(waited)
