"""List, verify and prune a remote (``kvlab store … --remote URL``), also while others use it.

Every function returns tidy rows, with ``workload`` "store", and raises ``StoreError``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from tqdm import tqdm

from kvlab.errors import StoreError
from kvlab.store.command_rows import Row, row
from kvlab.store.remote.block_bytes import BadBlock, decode
from kvlab.store.remote.budget import remove_surplus
from kvlab.store.remote.client import RemoteClient, connect
from kvlab.store.remote.errors import RemoteTrouble
from kvlab.store.remote.sealing import BLOCKS, OtherSecret, Sealing, sealing_from_environment
from kvlab.tiers import REMOTE

Bad = dict[str, BadBlock]


def ls(url: str) -> list[Row]:
    """Count blocks and bytes, and the seconds since the oldest and the youngest use (or write, in an object store).

    Model, policy and tenant stand within the blocks, which are not read; nothing is changed.
    """
    with _opened(url) as client:
        unused, nbytes = list[float](), 0
        for block in client.blocks(BLOCKS):
            unused.append(block.unused_s)
            nbytes += block.nbytes
    ages = [row("unused_s", max(unused), "s"), row("used_s", min(unused), "s")] if unused else []
    return [row(REMOTE.metric, nbytes, "bytes"), row("blocks", len(unused), "blocks"), *ages]


def verify(url: str, *, progress: bool = False, repair: bool = False) -> list[Row]:
    """Read every block with the secret of the environment, if there is one.

    ``corrupt`` counts those that are no block, or another one than their name says; ``locked`` those that were sealed
    with another secret, of which nothing more is known. The former have a row each, and are removed with ``repair``.
    """
    sealing, corrupt, locked, good, nbytes = sealing_from_environment(), Bad(), 0, 0, 0
    with _opened(url) as client:
        listed = [block.name for block in client.blocks(BLOCKS)]
        for name in tqdm(listed, desc="verify", unit=" blocks", disable=not progress):
            data = client.read([name]).get(name)
            if data is None:
                if client.sizes([name]):
                    corrupt[name] = BadBlock("it is no value of bytes")
                continue  # it has left since
            try:
                _check(sealing, name, data)
            except OtherSecret:
                locked += 1
            except BadBlock as error:
                corrupt[name] = error
            else:
                good, nbytes = good + 1, nbytes + len(data)
        if repair:
            client.delete(list(corrupt))
    return [
        row("verified", good, "blocks"),
        row("verified_bytes", nbytes, "bytes"),
        row("corrupt", 0 if repair else len(corrupt), "blocks"),
        row("locked", locked, "blocks"),
        *([row("removed", len(corrupt), "blocks")] if repair else []),
        *(row("corrupt_file", 1, "files", {"file": name, "reason": str(error)}) for name, error in corrupt.items()),
    ]


def prune(url: str, *, keep: int | None = None, unused: float | None = None) -> list[Row]:
    """Remove what was not used for ``unused`` seconds, and the least recently used until ``keep`` bytes are left.

    Leaves go first; a chain is never broken.
    """
    if keep is None and unused is None:
        raise StoreError("nothing to prune by; say how many bytes to keep, or how long unused blocks may stay")
    with _opened(url) as client:
        done = remove_surplus(client, keep=keep, unused_s=unused or 0.0)
    return [
        row("removed", done.removed, "blocks"),
        row("removed_bytes", done.removed_bytes, "bytes"),
        row(REMOTE.metric, done.left_bytes, "bytes"),
    ]


def _check(sealing: Sealing, name: str, data: bytes) -> None:
    """Raise ``BadBlock`` unless the bytes are the block that the name says."""
    block = decode(sealing.open(name, data))
    if sealing.name(BLOCKS, block.key) != name:
        raise BadBlock(f"it is the block of another name, {PurePosixPath(sealing.name(BLOCKS, block.key)).name[:16]}…")


@contextlib.contextmanager
def _opened(url: str) -> Iterator[RemoteClient]:
    client = connect(url, None)
    try:
        yield client
    except RemoteTrouble as error:
        raise StoreError(f"the remote {url}: {error}") from error
    finally:
        client.close()
