"""Training sequences: the workloads under other seeds, and random sequences that repeat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from render import render
from tokenizers import Tokenizer
from torch import Tensor

from kvlab.workloads.agent import converse
from kvlab.workloads.base import Message
from kvlab.workloads.chat import Chat
from kvlab.workloads.desk import RULES, TOOLS
from kvlab.workloads.retrieval import Retrieval
from kvlab.workloads.words import NAMES

TRAIN_SEED = 10**6  # workloads that are measured use small seeds
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """`ids` `[batch, length]`, the positions that are asked `rows` `[batch, r]`, and what to say there `targets`."""

    ids: Tensor
    rows: Tensor
    targets: Tensor


class Sampler:
    """Draws training sequences of about a wanted length; deterministic in `seed`."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = Random(f"train/{seed}")
        start, assistant, newline = tokenizer.encode("<|im_start|>assistant\n").ids
        self.header, self.end = (start, assistant, newline), tokenizer.token_to_id("<|im_end|>")
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        self.copied = [tokenizer.token_to_id(token) for token in (*NAMES, *(f"{n:03d}" for n in range(1000)))]

    def batches(self, tokens: int, length: int, mix: dict[str, float]) -> Iterator[Batch]:
        """Endless batches of about `tokens` tokens; `mix` gives the weight of each kind of sequence."""
        while True:
            kinds = self.rng.choices(list(mix), list(mix.values()), k=max(1, tokens // length))
            yield self._collate([getattr(self, kind)(length) for kind in kinds])

    def repeats(self, length: int) -> tuple[list[int], list[int]]:
        """Random names and numbers in chunks that come twice, the second time in another order; loss on the second."""
        size = self.rng.choice((4, 8, 16, 64))
        n = max(1, length // 2 // size)
        chunks = [self.rng.choices(self.copied, k=size) for _ in range(n)]
        first = [token for chunk in chunks for token in chunk]
        again = self.rng.sample(chunks, n)
        ids = first + [token for chunk in again for token in chunk]
        rows = [len(first) + c * size + i for c in range(n) for i in range(2, size - 1)]
        return ids, self.rng.sample(rows, min(len(rows), 256))  # the output layer costs most: not every position

    def retrieval(self, length: int) -> tuple[list[int], list[int]]:
        turns = self.rng.randrange(1, 9)
        tokens = max(100, int(length - 30 * turns - 20))
        count = lambda text: len(self.tokenizer.encode(text).ids)  # noqa: E731
        workload = Retrieval(seed=self._seed(), tokens=tokens, turns=turns, count=count)
        return self._encode(*_whole(workload))

    def chat(self, length: int) -> tuple[list[int], list[int]]:
        return self._encode(*_whole(Chat(seed=self._seed(), turns=max(4, length // 32))))

    def agent(self, length: int) -> tuple[list[int], list[int]]:
        """A conversation under the full rules and tools where they fit, else under a few tools or none."""
        room = length - 1700
        if room > 300:
            rules, tools = RULES, TOOLS
        else:
            rules, tools = RULES.split("\n\n")[0], self.rng.sample(TOOLS, max(0, (length - 400) // 120))
            room = length - 60 - 120 * len(tools)
        turns = 5 * max(1, min(5, room // 190))
        messages, _ = converse(Random(self._seed()), turns, rules, "")
        return self._encode(messages, tools)

    def _seed(self) -> int:
        return TRAIN_SEED + self.rng.randrange(10**12)

    def _encode(self, messages: list[Message], tools: Any) -> tuple[list[int], list[int]]:
        """Ids of a conversation, and the positions before each token of an assistant message."""
        ids = self.tokenizer.encode(render(messages, tools)).ids
        rows, speaking = [], False
        for i in range(2, len(ids) - 1):
            if tuple(ids[i - 2 : i + 1]) == self.header:
                speaking = True
            elif ids[i] == self.end:
                speaking = False
            if speaking:
                rows.append(i)
        return ids, rows

    def _collate(self, sequences: list[tuple[list[int], list[int]]]) -> Batch:
        length = max(len(ids) for ids, _ in sequences)
        asked = max(len(rows) for _, rows in sequences)
        batch = len(sequences)
        all_ids = torch.full((batch, length), self.pad)
        all_rows = torch.zeros(batch, asked, dtype=torch.long)
        targets = torch.full((batch, asked), IGNORE)
        for b, (ids, rows) in enumerate(sequences):
            all_ids[b, : len(ids)] = torch.tensor(ids)
            all_rows[b, : len(rows)] = torch.tensor(rows)
            targets[b, : len(rows)] = torch.tensor([ids[row + 1] for row in rows])
        return Batch(all_ids, all_rows, targets)


def _whole(workload: Retrieval | Chat) -> tuple[list[Message], tuple[()]]:
    last = workload.requests()[-1]
    return [*last.messages, last.reference], ()
