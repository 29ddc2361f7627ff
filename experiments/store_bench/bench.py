"""How fast are the store's block files? Beside plain NumPy files, and zarr with one chunk a block.

    PYTHONPATH=. python experiments/store_bench/bench.py [--blocks 256] [--dir FOLDER]

One block is 393,216 bytes in 16 arrays: keys and values of 8 layers, [4, 64, 24] float32. Every format writes and reads
each block in turn, in one process, so that they share whatever else the machine does; the figures are medians and tenth
percentiles over the blocks, in milliseconds a block, with files in the page cache and nothing synced. ``store`` is the
whole path of a request, a block at a time: put, flush (with its syncs), match and read.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr

from kvlab.store import Namespace, Payload, Store, StoreConfig
from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, Block
from kvlab.store.ssd import blockfile
from kvlab.store.ssd.tier import SsdConfig

LAYERS, SHAPE = 8, (4, 64, 24)
NS = Namespace("bench", "", "float32", SHAPE[1])
GB = 1 << 30
T = TypeVar("T")


def opened(folder: Path) -> Store:
    return Store(StoreConfig(SHAPE[1], ram=GB, below=(SsdConfig(folder / "store", 4 * GB),)))


def payload(seed: int) -> Payload:
    rng = np.random.default_rng(seed)
    return {f"{i}.{x}": rng.standard_normal(SHAPE, dtype=np.float32) for i in range(LAYERS) for x in "kv"}


def block(seed: int, data: Payload) -> Block:
    tokens = np.full(SHAPE[1], seed, "<i4").tobytes()
    return Block(k.chain(NS.root(), tokens), NS.root(), NS, BLOCK, tokens, 0, 1.0, data)


def write_block(path: Path, one: Block) -> None:
    with open(path, "wb") as file:
        blockfile.write(file.fileno(), blockfile.encode(one))


class Clock:
    """Milliseconds by name; ``n`` blocks are handled by one call."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, work: Callable[[], T], n: int = 1) -> T:
        started = time.perf_counter()
        result = work()
        self.times[name].append(1000 * (time.perf_counter() - started) / n)
        return result

    def show(self) -> None:
        for name, values in self.times.items():
            tenth = sorted(values)[len(values) // 10]
            print(f"{name:<36}{statistics.median(values):9.4f}   p10 {tenth:8.4f}   n {len(values)}")


def files(clock: Clock, folder: Path, data: list[Payload]) -> None:
    """Formats beside each other, block by block."""
    blocks = [block(i, one) for i, one in enumerate(data)]
    flat = [np.concatenate([array.reshape(-1) for array in one.values()]) for one in data]
    chunked = zarr.create_array(
        folder / "z", shape=(len(flat), flat[0].size), chunks=(1, flat[0].size), dtype="float32",
        compressors=[zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    for i, (one, array) in enumerate(zip(blocks, flat, strict=True)):
        clock("write numpy.tofile", lambda i=i, array=array: array.tofile(folder / f"{i}.bin"))
        clock("write block file", lambda i=i, one=one: write_block(folder / f"{i}.kv", one))
        clock("write zarr, crc32c", lambda i=i, array=array: chunked.__setitem__(i, array))
    kept = []
    for i, one in enumerate(blocks):
        kept.append(clock("read numpy.fromfile", lambda i=i: np.fromfile(folder / f"{i}.bin", np.float32)))
        kept.append(clock("read block file", lambda i=i, one=one: blockfile.read(folder / f"{i}.kv", one.key)))
        kept.append(clock("read zarr, crc32c", lambda i=i: chunked[i]))


def whole(clock: Clock, folder: Path, data: list[Payload]) -> None:
    """The store in requests of 64 blocks, 4,096 tokens."""
    some = 64
    for at in range(0, len(data) - some + 1, some):
        part, n = data[at : at + some], some * SHAPE[1]
        tokens = np.arange(at * 1000, at * 1000 + n).tolist()
        plain = [np.concatenate([array.reshape(-1) for array in one.values()]) for one in part]
        paths = [folder / f"{i}.plain" for i in range(some)]
        for path, array in zip(paths, plain, strict=True):
            array.tofile(path)
        with opened(folder) as store:
            clock("store put", lambda s=store, t=tokens, p=part: s.put(NS, t, 0, p), some)
            clock("store put again", lambda s=store, t=tokens, p=part: s.put(NS, t, 0, p), some)
            clock("store match, in RAM", lambda s=store, t=tokens: s.release(s.match(NS, t)), some)
            match = store.match(NS, tokens)
            clock("store read, from RAM", lambda s=store, m=match: s.read(m), some)
            clock("store flush, with syncs", store.flush, some)
        with opened(folder) as store:
            match = clock("store match, on SSD", lambda s=store, t=tokens: s.match(NS, t), some)
            beside = "store read, numpy.fromfile beside"
            first = clock(beside, lambda p=paths: [np.fromfile(path, np.float32) for path in p], some)
            own = clock("store read, from SSD", lambda s=store, m=match: s.read(m), some)
            again = clock(beside, lambda p=paths: [np.fromfile(path, np.float32) for path in p], some)
            assert len(own[0]) == len(first) == len(again) == some
            del own, first, again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=256)
    parser.add_argument("--dir", type=Path, default=None, help="where to put the files; else the temporary folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kvlab-bench-", dir=options.dir))
    clock, data = Clock(), [payload(i) for i in range(options.blocks)]
    try:
        files(clock, folder, data)
        whole(clock, folder, data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.blocks} blocks of {LAYERS * 2 * np.prod(SHAPE) * 4} bytes; milliseconds a block (median)")
    clock.show()


if __name__ == "__main__":
    main()
