"""Experiment files: policies, a workload and a grid in one TOML file, checked and expanded to cells."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kvlab.errors import KvlabError, RunError
from kvlab.experiments.cell import Cell
from kvlab.experiments.run import Run, check_forced, check_shared, check_shared_systems, policies_only
from kvlab.importing import import_user_file
from kvlab.models import DTYPES
from kvlab.policies import Policy
from kvlab.recording.recorder import kind_name
from kvlab.systems import System
from kvlab.workloads import as_workload, is_teacher_forced
from kvlab.workloads.registry import file_of, takes_all

AXES: Mapping[str, type] = {
    "workload": str,
    "model": str,
    "adapter": str,
    "turns": int,
    "n": int,
    "concurrency": int,
    "tokens": int,
    "restart": bool,
}
"""Keys that a grid can vary by themselves; any other key of the grid fills ``{key}`` in the policies."""

_LISTS: Mapping[str, type] = {
    "policies": str,
    "systems": str,
    "seeds": int,
    "events": str,
    "metrics": str,
    "imports": str,
}
_PLAIN: Mapping[str, type] = {"title": str, "repeats": int, "exact": bool, "share_prompts": str, "dtype": str, **AXES}
_MAY_BE_EMPTY = ("events", "metrics", "imports")
_COUNTS = ("turns", "n", "concurrency", "tokens", "repeats")
_NAMES = {str: "text in quotes", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file.

    ``policies`` may hold ``{key}`` for a key of ``grid``; ``grid`` holds pairs of key and values.

    Args:
        adapter: folder of an adapter to load with the model; None, or empty text in a grid, for none.
        n: conversations; None is as many as ``concurrency``, or all there are of one's own data and of forced answers.
        share_prompts: RAM, such as "6GB", for prompts that are computed once for all policies: no rows of TTFT then.
        dtype: float32, float16 or bfloat16, of the weights of every model; None: as without.
        repeats: how often every cell is measured.
        exact: compare the tokens of lossless policies with those of no cache, which is run beside them.
        events: kinds of events to keep with the rows, such as ``evicted``.
        metrics: names of metrics that grade the answers in place of the workload's own way.
        imports: files of Python that define policies, workloads and metrics of one's own.
    """

    name: str
    policies: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    title: str = ""
    workload: str = "agent"
    model: str | None = None
    adapter: str | None = None
    turns: int | None = None
    n: int | None = None
    concurrency: int = 1
    tokens: int | None = None
    restart: bool = False
    exact: bool = True
    share_prompts: str | None = None
    dtype: str | None = None
    seeds: tuple[int, ...] = (0,)
    repeats: int = 1
    events: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def cells(self) -> list[Cell]:
        """Return every cell once, repeat by repeat, so that a drift over time affects all policies alike.

        Raises KvlabError for a policy, workload or metric that does not exist, and for a file that cannot be imported.
        """
        if self.dtype is not None and self.dtype not in DTYPES:
            raise RunError(f"no dtype {self.dtype!r}; write one of {', '.join(DTYPES)}")
        imported = tuple(import_user_file(path) for path in self.imports)
        axes, names = dict(self.grid), {name for name, _ in self.grid}
        plain = {name: getattr(self, name) for name in AXES}
        unused = names - set(AXES) - {field for policy in self.policies for field in _placeholders(policy)}
        if unused:
            name = min(unused)
            raise RunError(f"grid.{name} changes nothing: write {{{name}}} in a policy, or one of {', '.join(AXES)}")
        cells: dict[Cell, None] = {}
        for repeat, seed in itertools.product(range(self.repeats), self.seeds):
            for point in _points(axes, [name for name in axes if name in AXES]):
                for template in self.policies:
                    for filling in _points(axes, _placeholders(template)):
                        run = self._run(_filled(template, filling), seed, plain | point)
                        cells[Cell(run, repeat, self.exact, self.events, imported)] = None
                for name in self.systems:
                    run = self._run("full", seed, plain | point, str(System.parse(name)))
                    cells[Cell(run, repeat, self.exact, self.events, imported)] = None
        for workload, turns, tokens in {(c.run.workload, c.run.turns, c.run.tokens) for c in cells}:
            if is_teacher_forced(workload):
                check_forced(metrics=bool(self.metrics), restart=self.restart, repeats=self.repeats)
                policies_only([System.parse(name) for name in self.systems])
            as_workload(workload, self.metrics, turns=turns, tokens=tokens)
        for restart in {cell.run.restart for cell in cells}:
            check_shared(share_prompts=self.share_prompts, restart=restart)
        data = {spec: _digest(str(spec)) for spec in {cell.run.workload for cell in cells}}
        return [replace(cell, data=data[cell.run.workload]) for cell in cells]

    def _run(self, policy: str, seed: int, values: Mapping[str, Any], system: str | None = None) -> Run:
        n = values["n"]
        if n is None and not takes_all(values["workload"]):
            n = values["concurrency"]
        chosen = {**values, "n": n, "adapter": values["adapter"] or None}
        run = Run(str(Policy.parse(policy)), seed=seed, metrics=self.metrics, system=system, dtype=self.dtype, **chosen)
        check_shared_systems(self.share_prompts, [run.candidate])
        return replace(run, share_prompts=self.share_prompts)


def read_experiment(path: str | Path, imports: Sequence[str | Path] = ()) -> Experiment:
    """Read and check a file; `imports` come before those that it names.

    Raises KvlabError with one line that names the file and the correction.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"no experiment file {path}; give a TOML file such as those in experiments/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}); give a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise RunError(f"{path} is not TOML: {error}") from error
    try:
        checked = _checked(values)
        checked["imports"] = (*map(str, imports), *checked.get("imports", ()))
        experiment = Experiment(path.stem, **checked)
        experiment.cells()
    except KvlabError as error:
        raise type(error)(f"{path}: {error}") from error
    return experiment


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked arguments of :class:`Experiment`. Raises RunError."""
    known = {field.name for field in fields(Experiment)} - {"name"}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RunError(f"unknown key {key!r}: {hint}known are {', '.join(sorted(known))}")
    if "policies" not in values and "systems" not in values:
        raise RunError('there are no policies; write policies = ["full", "tiered"], or systems = ["omlx"]')
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key == "grid":
            made[key] = _grid(value, values)
        elif key in _LISTS:
            made[key] = _list(key, value, _LISTS[key], empty=key in _MAY_BE_EMPTY)
        else:
            made[key] = _plain(key, value)
    made["events"] = tuple(kind_name(kind) for kind in made.get("events", ()))
    return made


def _plain(key: str, value: Any, kind: type | None = None) -> Any:
    kind = kind or _PLAIN[key]
    if type(value) is not kind:  # exactly: true is not a number
        raise RunError(f"{key} is {value!r}; write {_NAMES[kind]}")
    if key in _COUNTS and isinstance(value, int) and value < 1:
        raise RunError(f"{key} is {value}; write 1 or more")
    return value


def _list(key: str, value: Any, kind: type, *, empty: bool = False) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RunError(f"{key} is {value!r}; write a list in brackets, such as {key} = [...]")
    if not value and not empty:
        raise RunError(f"{key} is an empty list; write at least one")
    return tuple(_plain(key, item, kind) for item in value)


def _grid(value: Any, values: Mapping[str, Any]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(value, dict):
        raise RunError("grid is no table; write [grid] on a line of its own, and lists below it")
    if not value:
        raise RunError("the grid is empty; write lists below [grid], such as concurrency = [1, 4], or leave it out")
    made = []
    for key, items in value.items():
        if key in values and key in AXES:
            raise RunError(f"{key} is given twice, by itself and in the grid; keep one")
        if not isinstance(items, list) or not items:
            raise RunError(f"grid.{key} is {items!r}; write a list of at least one value")
        if key in AXES:
            made.append((key, tuple(_plain(key, item, AXES[key]) for item in items)))
        elif key in _PLAIN or key in _LISTS:
            raise RunError(f"{key} cannot be in the grid; write it above [grid]")
        else:
            if wrong := [item for item in items if not isinstance(item, str | int | float)]:
                raise RunError(f"grid.{key} holds {wrong[0]!r}; write text or numbers")
            made.append((key, tuple(items)))
    return tuple(made)


def _digest(workload: str) -> str:
    """Return the SHA-256 of the file that a workload reads; empty without one."""
    file = file_of(workload)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else ""


def _placeholders(template: str) -> list[str]:
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise RunError(f"policy {template!r} cannot be read ({error}); write {{key}} for a key of the grid") from error
    return list(dict.fromkeys(found))


def _points(axes: Mapping[str, tuple[Any, ...]], names: list[str]) -> Iterator[dict[str, Any]]:
    """Return every combination of the values of these axes. Raises RunError for a name that is no axis."""
    for name in names:
        if name not in axes:
            raise RunError(
                f"a policy names {{{name}}}, which the grid does not have; write {name} = [...] below [grid]"
            )
    for values in itertools.product(*(axes[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _filled(template: str, values: Mapping[str, Any]) -> str:
    parts = string.Formatter().parse(template)
    return "".join(text + ("" if name is None else str(values[name])) for text, name, _, _ in parts)
