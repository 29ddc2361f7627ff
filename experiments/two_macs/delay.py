"""Pass bytes on to a server, each so many seconds after it came: ``python delay.py HOST PORT SECONDS``.

The line's rate is not touched: any number of bytes may be under way. Prints the port that it listens on. A line on its
standard input is another delay, for what comes from then on.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time

PIECE_BYTES = 1 << 18


class Line:
    """Connects clients with a server."""

    def __init__(self, host: str, port: int, delay_s: float) -> None:
        self.server, self.delay_s = (host, port), delay_s

    def serve(self) -> None:
        """Accept connections until the process ends."""
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(self.server)
            except OSError:
                client.close()
                continue
            for source, sink in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._take, args=(source, under_way), daemon=True).start()
                threading.Thread(target=self._give, args=(sink, under_way), daemon=True).start()

    def _take(self, source: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(PIECE_BYTES)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + self.delay_s, data))

    def _give(self, sink: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, data = under_way.get()
                time.sleep(max(0.0, at - time.monotonic()))
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)


if __name__ == "__main__":
    line = Line(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    threading.Thread(target=line.serve, daemon=True).start()
    for told in sys.stdin:
        line.delay_s = float(told)
    threading.Event().wait()
