"""Who is let into a server, and what each client sees: settings, keys, host names and origins of pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import KvlabError
from kvlab.server import Settings
from kvlab.server.access import client_of
from kvlab.server.errors import ApiError
from kvlab.server.origins import AllowedOrigins

LOCAL_PAGES = [
    "http://localhost:3000",
    "http://127.0.0.1",
    "https://127.8.0.1:8443",
    "http://[::1]:5173",
    "http://app.localhost:8000",
    "app://obsidian.md",
    "vscode-webview://1k2j3h4g5f",
    "vscode-file://vscode-app",
    "tauri://localhost",
    "file://",
]
FOREIGN_PAGES = [
    "https://example.org",
    "http://localhost.example.org",
    "http://127.0.0.1.example.org:8080",
    "http://example.org#localhost",
    "http://localhost@example.org",
    "http://10.0.0.1",
    "chrome-extension://abcdef",
    "null",
    "*",
]
MALFORMED_PAGES = [
    "http://[bad",
    "http://]",
    "http://",
    "://",
    "http://[::1",
    "http://[v1.x]:80",
    "\x00",
    "http://a:b:c",
]


def test_a_server_for_others_needs_a_key():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(KvlabError, match="refusing to listen"):
            Settings(host=host)
        assert Settings(host=host, api_keys=("secret",)).host == host
    for host in ("127.0.0.1", "localhost", "::1", "127.8.0.1"):
        Settings(host=host)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"queue": -1}, "queue"),
        ({"port": 70000}, "port 70000"),
        ({"api_keys": (" ",)}, "empty API key"),
        ({"api_keys": "secret"}, "a tuple of keys"),
        ({"admin_keys": "secret"}, "admin_keys is a tuple of keys"),
        ({"api_keys": ("k" * 5000,)}, "4096 characters"),
        ({"heartbeat": 0}, "heartbeat"),
        ({"live_memory": 0}, "live_memory"),
    ],
)
def test_impossible_settings_are_refused(fields, words):
    with pytest.raises(KvlabError, match=words):
        Settings(**fields)


def test_keys_are_checked_and_salt_tenants():
    assert client_of({}, ()).tenant == ""
    with pytest.raises(ApiError, match="needed") as none:
        client_of({}, ("a", "b"))
    with pytest.raises(ApiError, match="not known"):
        client_of({"authorization": "Bearer c"}, ("a", "b"))
    a, b = (client_of(headers, ("a", "b")) for headers in ({"authorization": "Bearer a"}, {"x-api-key": "b"}))
    assert none.value.status == 401
    assert len({a.tenant, b.tenant, ""}) == 3
    assert client_of({"x-api-key": "a"}, ("a", "b")) == a


def test_only_admin_keys_see_all_where_there_are_several_keys():
    def sees_all(key: str, keys: tuple[str, ...], admin_keys: tuple[str, ...] = ()) -> bool:
        return client_of({"x-api-key": key}, keys, admin_keys).sees_all

    assert client_of({}, ()).sees_all
    assert sees_all("a", ("a",))
    assert sees_all("a", ("a", "a"))
    assert not sees_all("a", ("a", "b"))
    assert not sees_all("a", ("a",), ("admin",))
    assert sees_all("admin", ("a",), ("admin",))
    assert sees_all("admin", (), ("admin",))
    assert sees_all("a", ("a", "b"), ("a",))


@pytest.mark.parametrize("page", LOCAL_PAGES)
def test_pages_of_this_machine_and_of_its_programs_are_let_in(page):
    origins = AllowedOrigins("127.0.0.1")
    origins.check(page, "localhost:8080")
    assert origins.allows(page)


@pytest.mark.parametrize("page", [*FOREIGN_PAGES, *MALFORMED_PAGES])
def test_pages_of_other_sites_and_malformed_origins_are_refused(page):
    origins = AllowedOrigins("127.0.0.1")
    assert not origins.allows(page)
    with pytest.raises(ApiError, match="--allow-origin") as error:
        origins.check(page, "127.0.0.1:8080")
    assert error.value.status == 403


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_origin_and_no_host_name_breaks_the_check(origin, host):
    try:
        AllowedOrigins("127.0.0.1", ("https://example.org",)).check(origin, host)
    except ApiError as error:
        assert error.status in (400, 403)


def test_further_pages_are_named_by_origin_or_scheme():
    given = ("https://Example.org", "http://example.org:8000", "chrome-extension://*")
    origins = AllowedOrigins("127.0.0.1", given)
    for page in ("https://example.org", "http://example.org:8000", "chrome-extension://abcdef", "http://localhost"):
        origins.check(page, None)
        assert origins.allows(page)
    for page in (
        "http://example.org",
        "https://www.example.org",
        "https://example.org:8000",
        "moz-extension://a",
        "null",
    ):
        assert not origins.allows(page)
    assert AllowedOrigins("127.0.0.1", ("*",)).allows("https://anything.example")
    assert AllowedOrigins("127.0.0.1", ("null",)).allows("null")


@pytest.mark.parametrize(
    "origin", ["example.org", "https://", "https://example.org/path", "https://*.example.org", "", " "]
)
def test_settings_refuse_what_is_no_origin(origin):
    with pytest.raises(KvlabError, match="is no origin: write https://example.org"):
        Settings(allow_origins=(origin,))


def test_settings_refuse_what_is_no_host_name():
    for name in ("https://example.org", "example.org:80", "", "a b"):
        with pytest.raises(KvlabError, match="is no host name"):
            Settings(allow_hosts=(name,))
    with pytest.raises(KvlabError, match="allow_hosts is a tuple of hosts"):
        Settings(allow_hosts="example.org")


def test_foreign_host_names_are_refused_on_loopback():
    """A page can point a name of its own at this machine: its requests have no foreign origin then, only that name."""
    origins = AllowedOrigins("127.0.0.1", hosts=("proxy.example",))
    for host in (
        "127.0.0.1:8080",
        "localhost",
        "LOCALHOST:80",
        "[::1]:8080",
        "host.docker.internal:8080",
        "a.localhost",
        "0.0.0.0:8080",
        "localhost.",
        "proxy.example",
        None,
    ):
        origins.check(None, host)
    for host in ("rebound.example:8080", "localhost.example.org", "192.168.1.4", "127.0.0.1.nip.io", "xinternal"):
        with pytest.raises(ApiError, match="--allow-host") as error:
            origins.check(None, host)
        assert error.value.status == 403
    for host in ("[bad", "a b", "a:b:c", "127.0.0.1:8080:1", "a/b", "\x00", "[::1", "a@localhost"):
        with pytest.raises(ApiError) as error:
            origins.check(None, host)
        assert error.value.status == 400


def test_servers_for_other_machines_leave_names_and_pages_to_their_keys():
    AllowedOrigins("0.0.0.0").check("https://example.org", "any.example:80")
    assert not AllowedOrigins("0.0.0.0").allows("https://example.org")
    assert AllowedOrigins("0.0.0.0", ("https://example.org",)).allows("https://example.org")
