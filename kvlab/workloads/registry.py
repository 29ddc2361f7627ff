"""The workloads that are defined, by name, and one of them made from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Workload
from kvlab.workloads.graded import Graded
from kvlab.workloads.metrics import MetricLike, as_list
from kvlab.workloads.own import SUFFIXES, Own

WorkloadLike = Any
"""A Workload, its spec, or data of one's own: a path, a frame, a list or a dict, see :class:`Own`."""


def known_workloads() -> dict[str, type[Workload]]:
    """Return every workload class that has a name, by that name; of two with one name the later one counts."""
    found: dict[str, type[Workload]] = {}
    pending = list(Workload.__subclasses__())
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if name := cls.__dict__.get("name"):
            found[name] = cls
    return found


def workload_names() -> list[str]:
    """Return the names as they are written in a spec, such as ``agent`` or ``transcript:FILE``."""
    return [f"{name}:{cls.argument}" if cls.argument else name for name, cls in sorted(known_workloads().items())]


def names_with_option(option: str) -> list[str]:
    """Return the names of the workloads whose constructor takes ``option``."""
    return [name for name, cls in sorted(known_workloads().items()) if option in inspect.signature(cls).parameters]


def is_teacher_forced(workload: WorkloadLike) -> bool:
    """Return whether a workload, or the one that a spec names, forces its references upon the model."""
    if isinstance(workload, Workload):
        return workload.teacher_forced
    cls = known_workloads().get(workload.partition(":")[0]) if isinstance(workload, str) else None
    return cls is not None and cls.teacher_forced


def load_workload(
    spec: str,
    *,
    turns: int | None = None,
    n: int | None = None,
    seed: int = 0,
    tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> Workload:
    """Make the workload that ``spec`` names, with ``n`` conversations of ``turns`` requests.

    A spec is a name, a name with the file that it reads, or such a file alone, which is read as ``own:FILE``. A
    workload gets those options that its constructor names; ``n``, ``turns`` and ``tokens`` (the length of a prompt)
    keep the workload's own default without a value: one conversation, or all that a file of one's own holds.
    ``count`` counts the tokens of a text; without it, they are estimated.

    Raises:
        WorkloadError: an unknown name, a missing argument, or an option that this workload does not have.
    """
    name, _, argument = _with_name(spec).partition(":")
    cls = known_workloads().get(name)
    if cls is None or (argument and not cls.argument):
        raise WorkloadError(f"unknown workload {spec!r}; choose one of {', '.join(workload_names())}, or a .jsonl file")
    taken = inspect.signature(cls).parameters
    if cls.argument and not argument and next(iter(taken.values())).default is inspect.Parameter.empty:
        raise WorkloadError(f"{name} needs an argument: write {name}:{cls.argument}")
    chosen = {"turns": turns, "tokens": tokens, "n": n}
    options: dict[str, Any] = {option: value for option, value in chosen.items() if value is not None}
    for option, value in options.items():
        if option not in taken and (option, value) != ("n", 1):
            others = names_with_option(option)
            where = (
                f"the {', '.join(others)} workload{'s' * (len(others) > 1)} only" if others else "none of the workloads"
            )
            raise WorkloadError(f"{option} applies to {where}, not to {spec!r}")
    options = {option: value for option, value in (options | {"seed": seed, "count": count}).items() if option in taken}
    make: Callable[..., Workload] = cls
    return make(*([argument] if argument else []), **options)


def as_workload(
    given: WorkloadLike,
    metrics: MetricLike | Iterable[MetricLike] = (),
    *,
    turns: int | None = None,
    n: int | None = None,
    seed: int = 0,
    tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> Workload:
    """Return the workload of a spec or of one's own data, or the one given, with its answers graded by ``metrics``.

    The options are those of :func:`load_workload`; a Workload has been made with its own.

    Raises:
        WorkloadError: an unknown name, data or a metric that cannot be used; UserCodeError for a metric that fails.
    """
    if isinstance(given, str):
        workload = load_workload(given, turns=turns, n=n, seed=seed, tokens=tokens, count=count)
    elif isinstance(given, Workload):
        workload = given
    elif isinstance(given, type):
        raise WorkloadError(f"{given.__name__} is a class: write {given.__name__}() to use it as a workload")
    else:
        workload = Own(given, n=n, turns=turns)
    return Graded(workload, metrics) if as_list(metrics) else workload


def file_of(spec: str) -> Path | None:
    """Return the file that a spec names; None where it names none."""
    name, _, argument = _with_name(spec).partition(":")
    cls = known_workloads().get(name)
    return Path(argument) if cls is not None and cls.argument == "FILE" and argument else None


def takes_all(spec: str) -> bool:
    """Return whether a workload of this spec has all conversations there are, where no number is asked for."""
    cls = known_workloads().get(_with_name(spec).partition(":")[0])
    n = inspect.signature(cls).parameters.get("n") if cls is not None else None
    return n is not None and n.default is None


def _with_name(spec: str) -> str:
    """Return the spec with ``own:`` in front where it is a file only."""
    known = spec.partition(":")[0] in known_workloads()
    return f"own:{spec}" if not known and Path(spec).suffix.lower() in SUFFIXES else spec
