"""Ranks of a split model: what is refused, and how messages are agreed on, with one rank in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.nn.layers.distributed import AllToShardedLinear

from kvlab import load
from kvlab.decoder import ranks as ranks_module
from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.inbox import AgreedInbox, Inbox
from kvlab.decoder.ranks import OutOfStep, Ranks, ranks_of, without_time
from kvlab.errors import ModelError, PolicyError
from kvlab.models import LoadedModel, group_of, tensor_parallel
from kvlab.models.tensor_parallel import split_over_ranks
from kvlab.policies import Policy


class Group(SimpleNamespace):
    """Stands for a group of several ranks that no process has started."""

    def __init__(self, size: int) -> None:
        super().__init__(size=lambda: size, rank=lambda: 0)


@pytest.fixture
def four_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel.mx.distributed, "init", lambda: Group(4))


@pytest.mark.parametrize("spec", ["full", "paged", "quantized", "paged|turboquant", "tiered", "kivi"])
def test_policies_that_keep_all_rows_are_followed(spec: str, bundled: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(ranks_module, "group_of", lambda _: Group(2))
    assert isinstance(ranks_of(bundled, Policy.parse(spec)), Ranks)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("snapkv", "snapkv chooses rows by all heads"),
        ("rotating", "rotating chooses rows"),
        ("local(keydiff)|tiered", "local"),
        ("slots", "slots is not kept in step; write paged or none"),
        ("prompts", "prompts is not kept in step"),
        ("kvtc:transform=some.npz|tiered", "its transform is of all heads"),
        ("tiered:restore=auto", "write restore=always"),
    ],
)
def test_what_ranks_cannot_follow_is_refused(
    spec: str, why: str, bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks_module, "group_of", lambda _: Group(2))
    with pytest.raises(PolicyError, match=why):
        ranks_of(bundled, Policy.parse(spec))


def test_a_whole_model_has_no_ranks(bundled: LoadedModel) -> None:
    assert group_of(bundled.model) is None and ranks_of(bundled, Policy.parse("snapkv")) is None


def test_one_rank_alone_keeps_the_whole_model(bundled: LoadedModel) -> None:
    alone = load("bundled", tensor_parallel=True)
    assert group_of(alone.model) is None and alone.fingerprint == bundled.fingerprint


def test_a_model_that_mlx_lm_splits_has_its_group() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = AllToShardedLinear(8, 8)

    network = Network()
    assert group_of(network) is None  # one rank
    network.layer.group = Group(2)
    assert group_of(network) is network.layer.group
    network.pipeline_size = 2
    with pytest.raises(ModelError, match="pipeline"):
        group_of(network)


@pytest.mark.usefixtures("four_ranks")
def test_what_cannot_be_split_is_refused(bundled: LoadedModel) -> None:
    with pytest.raises(ModelError, match="num_key_value_heads=2 is not a multiple"):
        split_over_ranks(bundled.model, "bundled")
    with pytest.raises(ModelError, match="has no `shard`"):
        split_over_ranks(nn.Linear(4, 4), "mine")


def test_chunks_of_prompts_do_not_follow_the_time() -> None:
    assert without_time(DecoderConfig()).interleave == "chunks"
    assert without_time(DecoderConfig(interleave="none")) == DecoderConfig(interleave="none")


def test_messages_are_handed_out_once_every_rank_has_them() -> None:
    inbox = AgreedInbox(Ranks(mx.distributed.init()))
    inbox.put(7)
    assert inbox.read(wait=True) == [7]
    inbox.put(8)  # this rank has it now, and told the others of none a round ago
    assert inbox.read(wait=False) == []
    assert inbox.read(wait=False) == [8]
    inbox.put(9)
    inbox.put(None)
    assert inbox.read(wait=True) == [9, None]


def test_ranks_that_noted_other_things_are_out_of_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(mx.distributed.init())
    ranks.note(1, 2, 3)
    other = mx.array([[4, 0, 1]], mx.int32)
    monkeypatch.setattr(mx.distributed, "all_gather", lambda mine, group: mx.concatenate([mine, other]))
    ranks.post(5)
    with pytest.raises(OutOfStep, match="the same requests in the same order"):
        ranks.take()
    assert not ranks.has_posted


def test_an_inbox_refuses_what_comes_until_the_end(bundled: LoadedModel) -> None:
    inbox = Inbox()
    inbox.put(3)
    inbox.put(None)
    inbox.refuse(OutOfStep("over"))
    inbox.put(4)
    assert inbox.read(wait=False) == [4]
