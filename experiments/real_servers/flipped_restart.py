"""Restart a server of ``cards.py`` on a store whose bits were flipped meanwhile: ``… flipped_restart.py FOLDER``.

It is the command that ``cards.py --flip-bits`` gives to ``kvlab audit --restart``: the audit is not told what happened.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flipped_bits import flip, holds_kv

from kvlab.audit import own_server


def main() -> None:
    folder = Path(sys.argv[1])
    own_server.stop(folder)
    flipped = [flip(file) for file in sorted((folder / "home").rglob("*")) if holds_kv(file)]
    with (folder / "flipped").open("a", encoding="utf-8") as log:
        log.write(f"{len(flipped)}\n")
    own_server.start(folder)


if __name__ == "__main__":
    main()
