"""Keep a remote within its byte budget: leaves leave first, the least recently used of them before the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvlab.store.pruning_order import leaves_first
from kvlab.store.remote.client import RemoteClient, StoredBlock
from kvlab.store.remote.sealing import BLOCKS, CHECKPOINTS, CHILDREN

DELETES_PER_REQUEST = 200


@dataclass(frozen=True)
class Removal:
    """Counts what was removed from a remote, and what is left."""

    removed: int
    removed_bytes: int
    left: int
    left_bytes: int


def remove_surplus(
    client: RemoteClient, *, keep: int | None, unused_s: float = 0.0, ttl_s: float | None = None
) -> Removal:
    """Remove blocks unused for ``unused_s`` until ``keep`` bytes are left, None being all, and those beyond ``ttl_s``.

    Also removes members of collections whose block is gone. Raises ``RemoteTrouble``. Others may work on the remote
    meanwhile: what they write during the listing is not counted, and removed at the next.
    """
    listed = {block.name: block for block in client.blocks(BLOCKS)}
    links = [(parent, member) for folder in (CHILDREN, CHECKPOINTS) for parent, member in client.links(folder)]
    total = sum(block.nbytes for block in listed.values())
    expired = [name for name, block in listed.items() if ttl_s is not None and block.unused_s > ttl_s]
    surplus = total if keep is None else total - keep
    chosen = dict.fromkeys([*expired, *_chosen(listed.values(), links, surplus, unused_s)])
    for at in range(0, len(chosen), DELETES_PER_REQUEST):
        client.delete(list(chosen)[at : at + DELETES_PER_REQUEST])
    stale: dict[str, list[str]] = {}
    for parent, member in links:
        name = BLOCKS + member
        if name not in listed or name in chosen:
            stale.setdefault(parent, []).append(member)
    for parent, members in stale.items():
        client.remove(parent, members)
    gone = sum(listed[name].nbytes for name in chosen)
    return Removal(len(chosen), gone, len(listed) - len(chosen), total - gone)


def _chosen(
    blocks: Iterable[StoredBlock], links: Iterable[tuple[str, str]], surplus: int, unused_s: float
) -> list[str]:
    """Return the names to remove. A block that no collection names counts as one without a parent."""
    parents = {BLOCKS + member: BLOCKS + collection.rpartition("/")[2] for collection, member in links}
    found = [(block.name, parents.get(block.name, ""), -block.unused_s, block.nbytes) for block in blocks]
    return [name for name, _ in leaves_first(found, 0.0, unused_s, surplus)]
