"""The socket that a server listens on."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from kvlab.errors import KvlabError

BACKLOG = 256
"""Connections that the system keeps until they are accepted: a newcomer waits behind all of them."""
SEND_BUFFER_BYTES = 131_072
"""Bytes that the system keeps for a client that does not read; by itself it takes millions, for each connection."""
OUT_OF_HANDLES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ListeningSocket(socket.socket):
    """A socket that goes on accepting when the process has no file handles left: it drops the connection.

    asyncio's own loop would try again at once, and log each time.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError when there is none, or it had to be dropped."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in OUT_OF_HANDLES:
                raise
            self._drop_one()
            raise BlockingIOError(error.errno, "no file handle is left") from None

    def _drop_one(self) -> None:
        """Accept and close one connection with the spare handle: unaccepted, it would wake the event loop for ever."""
        os.close(self._spare)
        try:
            super().accept()[0].close()
        except OSError:
            pass
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the socket and its spare handle. Idempotent."""
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)
        super().close()


def bound_socket(host: str, port: int) -> ListeningSocket:
    """Bind a socket, so that the address is known before the server runs. Raises KvlabError when it is in use."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = ListeningSocket(family, kind, proto)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)  # accepted ones inherit it
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        raise KvlabError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    return made
