"""URLs of remotes, which policies name and the store opens: their forms, and what is wrong with one."""

from __future__ import annotations

from urllib.parse import urlsplit

REDIS_SCHEMES = ("redis", "rediss")
OBJECT_SCHEMES = ("s3", "gs", "az", "file")
URL_FORMS = "write redis://host:6379/0, rediss://…, s3://bucket/folder, gs://…, az://container/folder or file:///folder"


def url_problem(url: str) -> str:
    """Return what is wrong with a URL, and what to write instead; empty where nothing is.

    A password is refused, since a URL is part of a policy's name, which stands in rows and logs.
    """
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        return f"no remote {url!r}; {URL_FORMS}"
    if parts.scheme not in (*REDIS_SCHEMES, *OBJECT_SCHEMES) or not port_is_right:
        return f"no remote {url.rpartition('@')[2]!r}; {URL_FORMS}"
    if parts.password is not None:
        return (
            f"a password in a URL would be in every row and log: write {parts.scheme}://{parts.hostname}, and set "
            "KVLAB_REMOTE_PASSWORD in the environment"
        )
    if not (parts.path.strip("/") if parts.scheme == "file" else parts.hostname):
        return f"{url!r} names no place; {URL_FORMS}"
    return ""
