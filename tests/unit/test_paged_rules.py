"""The options of ``paged`` that rebuild other servers: what is matched, what is stored, and which specs are refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kvlab.decoder.reuse.block_size import block_for
from kvlab.decoder.reuse.paged_rules import match_whole_pieces, tokens_to_store
from kvlab.errors import PolicyError
from kvlab.policies import Paged, Policy
from kvlab.store import Store
from tests.store_kit import BLOCK, NS, opened, put

BLOCKS = Paged(block=BLOCK, match="block", checkpoint=BLOCK)
TAIL = Paged(block=BLOCK, match="tail")
OPENING = [90, 91, 92]


@pytest.fixture
def store() -> Iterator[Store]:
    with opened(None) as one:
        yield one


def found(store: Store, tokens: list[int], reuse: Paged, *, checkpoint: bool = False) -> tuple[int, str]:
    match = match_whole_pieces(store, NS, tokens, len(tokens) - 1, reuse, checkpoint=checkpoint)
    store.release(match)
    return match.tokens, match.miss


def test_full_blocks_only_are_matched(store: Store) -> None:
    put(store, list(range(3 * BLOCK + 5)))
    assert found(store, list(range(3 * BLOCK + 5)), BLOCKS)[0] == 3 * BLOCK
    assert found(store, [*range(2 * BLOCK + 4), 500, 501], BLOCKS) == (2 * BLOCK, f"diverged_at={2 * BLOCK + 4}")
    assert found(store, list(range(BLOCK - 1)), BLOCKS)[0] == 0, "nothing below a block is found"


def test_a_prompt_of_whole_blocks_computes_its_last_token(store: Store) -> None:
    put(store, list(range(3 * BLOCK)))
    assert found(store, list(range(3 * BLOCK)), BLOCKS) == (3 * BLOCK - 1, "")


def test_a_prompt_of_whole_blocks_is_computed_where_layers_need_a_checkpoint(store: Store) -> None:
    tokens = list(range(3 * BLOCK))
    put(store, tokens)
    for end in (BLOCK, BLOCK + 3, 2 * BLOCK, 3 * BLOCK):
        store.put_checkpoint(NS, tokens[:end], {"s": np.zeros(1)})
    assert found(store, tokens, BLOCKS, checkpoint=True)[0] == 0
    assert found(store, [*tokens, 7], BLOCKS, checkpoint=True)[0] == 3 * BLOCK
    assert found(store, [*tokens[: 2 * BLOCK - 1], 700, 701], BLOCKS, checkpoint=True) == (BLOCK, "diverged_at=15")


def test_a_tail_is_matched_where_all_of_it_is_found(store: Store) -> None:
    """vMLX: 362 of 366 tokens are kept; 362, 362 and 320 are found, in blocks of 64. Here 5 blocks and 2 tokens."""
    kept = list(range(5 * BLOCK + 2))
    put(store, kept)
    assert found(store, [*kept, 1, 2, 3, 4], TAIL)[0] == len(kept), "the repeated prompt"
    assert found(store, [*kept, *range(300, 320)], TAIL)[0] == len(kept), "the next turn"
    assert found(store, [*kept[:-1], 800, 801], TAIL)[0] == 5 * BLOCK, "another user behind the same system prompt"


def test_the_part_of_a_sequence_that_is_stored() -> None:
    prompt = [*range(359), 1, 2, 3, 4, *OPENING]
    assert len(prompt) == 366
    everything, whole = Paged(), Paged(match="block", block=64, checkpoint=64)
    assert tokens_to_store(everything, 400, prompt, []) == 400
    assert tokens_to_store(Paged(reply=False), 400, prompt, []) == 366
    assert tokens_to_store(whole, 400, prompt, []) == 384
    vmlx = Paged(block=64, match="tail", reply=False, opening=False)
    assert tokens_to_store(vmlx, 400, prompt, OPENING) == 362
    assert tokens_to_store(vmlx, 400, list(range(353)), OPENING) == 352, "a plain completion has no opening"
    assert tokens_to_store(vmlx, 5, OPENING, OPENING) == 0


@pytest.mark.parametrize(
    ("windows", "is_recurrent", "block"),
    [((), False, 256), ((128,), False, 512), ((300,), False, 600), ((512,), False, 512), ((1024, 1024), False, 1024)]
    + [((), True, 2048), ((512,), True, 2048)],
)
def test_the_block_size_that_omlx_takes(windows: tuple[int, ...], is_recurrent: bool, block: int) -> None:
    assert block_for(windows, is_recurrent=is_recurrent) == block


@pytest.mark.parametrize("spec", ["paged", "paged:block=64", "paged:block=64,checkpoint=100", "tiered"])
def test_specs_without_the_options_mean_what_they_meant(spec: str) -> None:
    reuse = Policy.parse(spec).reuse
    assert isinstance(reuse, Paged)
    assert (reuse.match, reuse.reply, reuse.opening, reuse.live, reuse.hot) == ("token", True, True, True, False)
    assert str(Policy.parse(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("paged:match=half", "write one of token, block, tail"),
        ("paged:match=block,block=48", "write checkpoint=1056"),
        ("paged:hot=true", "write live=false,hot=true"),
        ("snapkv|paged:live=false,hot=true", "use full"),
    ],
)
def test_refused_options_say_what_to_write(spec: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        Policy.parse(spec)
