"""A process that fills a store until it is killed: ``python -m tests.store_writer FOLDER SEED WRITE SSD``.

Each line on stdout is the seed of a conversation whose flush has returned.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.store_kit import BLOCK, opened, put


def talk(seed: int) -> list[int]:
    """A conversation of 3 to 12 blocks and a tail; every fifth seed goes on from the start of another."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 1000, int(rng.integers(3 * BLOCK, 12 * BLOCK))).tolist()
    return talk(seed - 1)[: 2 * BLOCK + 3] + tokens if seed % 5 == 4 else tokens


def main(folder: Path, seed: int, write: str, ssd: int) -> None:
    with opened(folder, write=write, ssd=ssd) as store:
        while True:
            put(store, talk(seed))
            if seed % 3:
                if not store.flush():
                    sys.exit(store.stats()["trouble"])
                print(seed, flush=True)
            seed += 1


def arguments(folder: Path, seed: int, write: str, ssd: int) -> Sequence[str]:
    return [sys.executable, "-m", "tests.store_writer", str(folder), str(seed), write, str(ssd)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
