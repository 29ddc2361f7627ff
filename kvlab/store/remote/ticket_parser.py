"""A parser of Redis's answers that takes no session ticket of TLS 1.3 for one."""

from __future__ import annotations

from redis._parsers import _HiredisParser


class TicketParser(_HiredisParser):
    """Parses answers as redis-py does with hiredis.

    A server of TLS 1.3 sends session tickets when the handshake has ended, unasked. Before each command redis-py asks
    whether data waits on the connection, and gives up one where it does ("Connection not ready"): such data would be
    taken for the answer. It looks at the socket, where a ticket is data, too.
    """

    def can_read(self, timeout: float = 0) -> bool:
        """Tell whether data of the server waits; what has come is read into this parser, and tickets are passed over.

        Returns False after a ticket even where the ``timeout``, in seconds, is not over. Raises
        ``redis.ConnectionError`` where the server has closed the connection.
        """
        if not super().can_read(timeout):
            return False
        reader = self._reader
        is_fed = reader is not None and reader.has_data()
        return is_fed or bool(self.read_from_socket(timeout=0, raise_on_timeout=False))
