"""The recorder: events in, Polars frames out, saved as a Zarr record."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr

from kvlab.errors import RunError
from kvlab.recording.events import KINDS, Chained, Event, Evicted, Matched, Submitted
from kvlab.recording.zarr_frames import read_frame, replacing, write_frame
from kvlab.tiers import tiers_at_rest

FORMAT = 1
_DTYPES: dict[str, Any] = {"int": pl.Int64, "float": pl.Float64, "str": pl.String, "bool": pl.Boolean}


def kind_name(kind: str | type[Event]) -> str:
    """Return `first_token` for `FirstToken`, the class or its name in either spelling. Raises RunError for others."""
    text = kind if isinstance(kind, str) else kind.__name__
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text).lower()
    if name not in _CLASSES:
        raise RunError(f"no events of kind {text!r}; the kinds are {', '.join(_CLASSES)}")
    return name


class Recorder:
    """Collects events from any thread. `emit` only appends: frames are made when they are asked for.

    A frame has one row an event, in the order of emission, except `evicted`: one row per dropped position and head,
    and `chained`: one row per block. The caller's tags are columns of `submitted`, and of every frame from `tagged`.
    """

    def __init__(self, provenance: Mapping[str, Any] | None = None) -> None:
        self.provenance: dict[str, Any] = dict(provenance or {})
        # What turns an event's `t` into seconds since 1970.
        self.epoch = time.time() - time.perf_counter()
        self._events: list[Event] = []
        self._loaded: dict[str, pl.DataFrame] = {}

    def emit(self, event: Event) -> None:
        self._events.append(event)  # list.append is atomic

    @property
    def events(self) -> list[Event]:
        """The events of this process, a copy. Events that were loaded or merged are in the frames only."""
        return list(self._events)

    def frame(self, kind: str | type[Event]) -> pl.DataFrame:
        """Return all events of one kind. With no such event the frame is empty but has its columns."""
        name = kind_name(kind)
        cls = _CLASSES[name]
        live = _FRAMES.get(cls, _plain_frame)(cls, [event for event in self.events if type(event) is cls])
        if name not in self._loaded:
            return live
        return pl.concat([self._loaded[name], live], how="diagonal_relaxed")

    def frames(self) -> dict[str, pl.DataFrame]:
        """Return the frames by kind, for the kinds that have events."""
        return {name: frame for name in _CLASSES if not (frame := self.frame(name)).is_empty()}

    def tagged(self, kind: str | type[Event]) -> pl.DataFrame:
        """Return `frame(kind)` with the tags of each event's request as columns (null for events of no request)."""
        frame, submitted = self.frame(kind), self.frame(Submitted)
        if kind_name(kind) == "submitted":
            return frame
        tags = submitted.drop(
            [field.name for field in dataclasses.fields(Submitted) if field.name != "request"], strict=False
        )
        tags = tags.drop([name for name in tags.columns if name != "request" and name in frame.columns])
        return frame.join(tags.unique("request", keep="first", maintain_order=True), on="request", how="left")

    def merge(self, other: Recorder) -> None:
        """Append the record of `other`, for example of another process; its requests are numbered after these."""
        shift = 1 + max((int(frame["request"].max()) for frame in self.frames().values()), default=-1)  # type: ignore[arg-type]
        clock = other.epoch - self.epoch
        for name, theirs in other.frames().items():
            request = pl.when(pl.col("request") >= 0).then(pl.col("request") + shift).otherwise(pl.col("request"))
            moved = theirs.with_columns(request.alias("request"), pl.col("t") + clock)
            kept = [self._loaded[name]] if name in self._loaded else []
            self._loaded[name] = pl.concat([*kept, moved], how="diagonal_relaxed")

    def save(self, path: str | Path) -> Path:
        """Write the record as a Zarr v3 group, all or nothing; a record that was there is replaced."""
        path = Path(path)
        with replacing(path) as folder:
            write_record(zarr.create_group(folder), self)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Recorder:
        """Read a record. Raises RunError where there is none, or where it is damaged."""
        with opened_record(path) as group:
            return read_record(group)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{escape(name)}</td><td>{frame.height:,}</td></tr>"
            for name, frame in self.frames().items()
        )
        return f"<table><thead><tr><th style='text-align:left'>event</th><th>rows</th></tr></thead>{cells}</table>"


def write_record(group: zarr.Group, recorder: Recorder) -> None:
    """Write the recorder's frames as groups of `group`, its provenance as attributes."""
    for name, frame in recorder.frames().items():
        write_frame(group, name, frame)
    group.attrs.update({"kvlab_record": FORMAT, "provenance": recorder.provenance, "epoch": recorder.epoch})


def read_record(group: zarr.Group) -> Recorder:
    """Read a record of `write_record`. Raises ValueError or KeyError for anything else."""
    attrs: Any = group.attrs
    if attrs.get("kvlab_record") != FORMAT:
        raise ValueError(f"record format {attrs.get('kvlab_record')!r}, this kvlab reads {FORMAT}")
    recorder = Recorder(attrs["provenance"])
    recorder.epoch = attrs["epoch"]
    for name, child in group.groups():
        recorder._loaded[kind_name(name)] = read_frame(child)
    return recorder


@contextmanager
def opened_record(path: str | Path) -> Iterator[zarr.Group]:
    """Open a Zarr group to read from. Every error inside the `with` becomes a one-line RunError about `path`."""
    try:
        if not Path(path).is_dir():
            raise RunError(f"{path}: no such record; give the folder of a kvlab run or its record.zarr")
        yield zarr.open_group(path, mode="r")
    except RunError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RunError(f"{path}: not a kvlab record, or a damaged one ({reason}); run the experiment again") from error


def _plain_frame(cls: type[Event], events: list[Any]) -> pl.DataFrame:
    fields = [field for field in dataclasses.fields(cls) if field.type in _DTYPES]
    schema = {field.name: _DTYPES[str(field.type)] for field in fields}
    return pl.DataFrame({name: [getattr(event, name) for event in events] for name in schema}, schema=schema)


def _submitted_frame(cls: type[Event], events: list[Any]) -> pl.DataFrame:
    frame = _plain_frame(cls, events)
    names = dict.fromkeys(str(name) for event in events for name in event.tags)
    columns = []
    for name in names:
        values = [_scalar(event.tags.get(name)) for event in events]
        if len({type(value) for value in values if value is not None}) > 1:
            values = [None if value is None else str(value) for value in values]
        columns.append(pl.Series(f"tag_{name}" if name in frame.columns else name, values))
    return frame.with_columns(columns)


def _matched_frame(cls: type[Event], events: list[Any]) -> pl.DataFrame:
    tiers = [tier.name for tier in tiers_at_rest(tier for event in events for tier in event.by_tier)]
    return _plain_frame(cls, events).with_columns(
        pl.Series(f"{tier}_tokens", [int(event.by_tier.get(tier, 0)) for event in events], pl.Int64) for tier in tiers
    )


def _evicted_frame(cls: type[Event], events: list[Any]) -> pl.DataFrame:
    def column(of: Callable[[Evicted, np.ndarray], Any], dtype: Any) -> np.ndarray:
        parts = [np.broadcast_to(of(event, keep), keep.shape)[keep] for event, keep in zip(events, kept, strict=True)]
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)

    kept = [np.asarray(event.positions) >= 0 for event in events]
    return pl.DataFrame(
        {
            "request": column(lambda event, _: event.request, np.int64),
            "t": column(lambda event, _: event.t, np.float64),
            "layer": column(lambda event, _: event.layer, np.int64),
            "head": column(lambda _, keep: np.arange(keep.shape[0])[:, None], np.int64),
            "position": column(lambda event, _: np.asarray(event.positions), np.int64),
            "step": column(lambda event, _: event.step, np.int64),
            "kept": column(lambda event, _: event.kept, np.int64),
        }
    )


def _chained_frame(cls: type[Event], events: list[Any]) -> pl.DataFrame:
    lengths = np.array([len(event.blocks) for event in events], np.int64)
    columns = {
        name: np.repeat(np.array([getattr(event, name) for event in events], dtype), lengths)
        for name, dtype in (("request", np.int64), ("t", float), ("block_tokens", np.int64), ("kept", bool))
    }
    places = [np.arange(length, dtype=np.int64) for length in lengths]
    blocks = [np.asarray(event.blocks, np.int64) for event in events]
    empty = [np.empty(0, np.int64)]
    return pl.DataFrame(columns | {"place": np.concatenate(empty + places), "block": np.concatenate(empty + blocks)})


def _scalar(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _names() -> Iterator[tuple[str, type[Event]]]:
    for cls in KINDS:
        yield re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower(), cls


_CLASSES: dict[str, type[Event]] = dict(_names())
_FRAMES: dict[type[Event], Callable[[type[Event], list[Any]], pl.DataFrame]] = {
    Submitted: _submitted_frame,
    Matched: _matched_frame,
    Evicted: _evicted_frame,
    Chained: _chained_frame,
}
