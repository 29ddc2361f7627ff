"""``python -m tests.attacks URL SECONDS NAME…``: run attacks side by side.

It prints a line when they begin, and at the end what came back, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import threading

from tests.attacks.bodies import BODIES, encoded, post_all
from tests.attacks.sockets import SOCKETS
from tests.attacks.wire import Target

MOST_SECONDS_MORE = 60.0


def main(url: str, seconds: float, names: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard) if hard > 0 else 8192, hard))
    posts = {name: encoded(BODIES[name]()) for name in names if name in BODIES}
    print("begin", flush=True)
    targets = {name: Target(url, seconds, seconds + MOST_SECONDS_MORE) for name in names}
    threads = [
        threading.Thread(target=post_all, args=(targets[name], posts[name]))
        if name in posts
        else threading.Thread(target=SOCKETS[name], args=(targets[name],))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({name: dict(target.outcomes) for name, target in targets.items()}))


main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
