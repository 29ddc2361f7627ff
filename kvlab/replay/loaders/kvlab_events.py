"""kvlab's own records of events: what a run, or a recorder, saved.

A store's blocks are named in the events (``chained``): the chain of each prompt, what its answer added, and the tokens
that were found in a block that went on otherwise. Where a record has no such names, of a policy without blocks or of an
earlier kvlab, it holds the size of a prompt and what was found of it. So chains are inferred: a turn's prompt is taken
to begin with the prompt of the turn before, up to the token at which a miss says that it ``diverged_at``; the first
prompt of a conversation is taken to begin with as many tokens of the record's first conversation as it found cached.
What a full tier had evicted by then is unknown: record with a tier that holds everything.
"""

from __future__ import annotations

import re
from typing import Any

import polars as pl
import zarr

from kvlab.errors import RunError
from kvlab.recording.recorder import Recorder, opened_record, read_record
from kvlab.replay.errors import TraceError
from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace, block_trace

BLOCK_TOKENS = 16
RECORD = "record.zarr"
COLUMNS = ("t", "prompt_tokens", "conversation", "answered", "cached_tokens", "miss")


class KvlabEvents(TraceLoader):
    """Reads a run folder, its ``record.zarr``, or what ``Recorder.save`` wrote; of several policies the first one."""

    name = "kvlab"
    about = "a folder of a kvlab run, or its record.zarr; prompts are inferred from sizes and cached tokens"

    def recognises(self, source: TraceSource) -> bool:
        return (source.path / RECORD).is_dir() or (source.path / "zarr.json").is_file()

    def load(self, source: TraceSource) -> BlockTrace:
        path = source.path / RECORD if (source.path / RECORD).is_dir() else source.path
        try:
            with opened_record(path) as group:
                recorder = _first_recorder(group)
        except RunError as error:
            raise TraceError(str(error)) from None
        return trace_of_events(source.name, recorder)


def trace_of_events(name: str, recorder: Recorder) -> BlockTrace:
    """Infer the trace of a recorder's requests, in blocks of 16 tokens. Raises ``TraceError`` where it has none."""
    requests = _requests(recorder)
    if requests.is_empty():
        raise TraceError(f"{name}: the record holds no request; expected events of kind submitted")
    if not (named := recorder.frame("chained")).is_empty():
        return _named_trace(name, requests, named)
    chains = _Chains()
    numbers: dict[Any, int] = {}
    made = []
    for t, tokens, conversation, answered, cached, miss in requests.select(COLUMNS).iter_rows():
        made.append((t, tokens, answered or 0, numbers.setdefault(conversation, len(numbers))))
        chains.add(conversation, tokens, cached or 0, miss or "")
    start = made[0][0]
    return block_trace(
        name,
        BLOCK_TOKENS,
        chains.made,
        times=[t - start for t, *_ in made],
        input_tokens=[tokens for _, tokens, *_ in made],
        output_tokens=[answered for *_, answered, _ in made],
        sessions=[session for *_, session in made],
    )


def _named_trace(name: str, requests: pl.DataFrame, named: pl.DataFrame) -> BlockTrace:
    """Return the trace of the blocks that the events name: of the first lookup of each request, and of its end."""
    size = int(named["block_tokens"][0])
    asked, kept = (_chains_of(named.filter(pl.col("kept") == is_kept)) for is_kept in (False, True))
    requests = requests.filter(pl.col("cached_tokens").is_not_null())  # others ended before they were looked up
    chains, answers, tails = [], [], []
    for request, cached in requests.select("request", "cached_tokens").iter_rows():
        prompt = asked.get(request, [[]])[0]
        stored = max(kept.get(request, [[]]), key=len)
        chains.append(stored if stored[: len(prompt)] == prompt else prompt)
        answers.append(len(chains[-1]) - len(prompt))
        tails.append(divmod(cached, size))
    times, sessions = requests["t"].to_numpy(), requests["conversation"].rank("dense").to_numpy()
    return block_trace(
        name,
        size,
        chains,
        times=times - times[0],
        input_tokens=requests["prompt_tokens"].to_numpy(),
        output_tokens=requests["answered"].fill_null(0).to_numpy(),
        sessions=sessions,
        notes={
            "answer_blocks": answers,
            "tail_blocks": [blocks for blocks, _ in tails],
            "tail_tokens": [tokens for _, tokens in tails],
        },
    )


def _chains_of(named: pl.DataFrame) -> dict[int, list[list[int]]]:
    """Return the chains of each request, one for each time that it was named."""
    found: dict[int, list[list[int]]] = {}
    for (request, _), one in named.group_by("request", "t", maintain_order=True):
        found.setdefault(int(request), []).append(one.sort("place")["block"].to_list())
    return found


class _Chains:
    """Continues the chain of each conversation."""

    def __init__(self) -> None:
        self.made: list[list[int]] = []
        self._full: dict[Any, list[int]] = {}
        self._used = 0

    def add(self, conversation: Any, tokens: int, cached: int, miss: str) -> None:
        full = tokens // BLOCK_TOKENS
        before = self._full.get(conversation)
        if before is None:
            first = next(iter(self._full.values()), [])
            kept = first[: min(cached // BLOCK_TOKENS, full)]
        else:
            diverged = re.fullmatch(r"diverged_at=(\d+)", miss)
            kept = before[: min(int(diverged[1]) // BLOCK_TOKENS if diverged else len(before), full)]
        chain = kept + self._new(full - len(kept))
        self._full[conversation] = chain
        self.made.append(chain + self._new(1) if tokens % BLOCK_TOKENS else chain)

    def _new(self, count: int) -> list[int]:
        self._used += count
        return list(range(self._used - count, self._used))


def _requests(recorder: Recorder) -> pl.DataFrame:
    submitted = recorder.frame("submitted")
    if "conversation" not in submitted.columns:
        submitted = submitted.with_columns(pl.col("request").alias("conversation"))
    matched = recorder.frame("matched").select("request", "cached_tokens", "miss").unique("request", keep="first")
    finished = recorder.frame("finished").select("request", pl.col("tokens").alias("answered"))
    joined = submitted.join(matched, on="request", how="left").join(
        finished.unique("request", keep="last"), on="request", how="left"
    )
    return joined.sort("t", maintain_order=True)


def _first_recorder(group: zarr.Group) -> Recorder:
    events: Any = group.get("events")
    if events is None:
        return read_record(group)
    for _, own in sorted(events.groups()):
        return read_record(own)
    raise ValueError("no events in it")
