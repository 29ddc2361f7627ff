"""The workloads that are defined, by name, and one of them made from its name and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Workload


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
    return [f"{name}:{cls.argument}" if cls.argument else name for name, cls in known_workloads().items()]


def names_with_option(option: str) -> list[str]:
    """Return the names of the workloads whose constructor takes ``option``."""
    return [name for name, cls in known_workloads().items() if option in inspect.signature(cls).parameters]


def load_workload(
    spec: str,
    *,
    turns: int | None = None,
    n: int = 1,
    seed: int = 0,
    tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> Workload:
    """Make the workload that ``spec`` names, with ``n`` conversations of ``turns`` requests.

    A workload gets those options that its constructor names; ``turns`` and ``tokens`` (the length of a prompt) keep the
    workload's own default without a value. ``count`` counts the tokens of a text; without it, they are estimated.

    Raises:
        WorkloadError: an unknown name, a missing argument, or an option that this workload does not have.
    """
    name, _, argument = spec.partition(":")
    cls = known_workloads().get(name)
    if cls is None or (argument and not cls.argument):
        raise WorkloadError(f"unknown workload {spec!r}; choose one of {', '.join(workload_names())}")
    taken = inspect.signature(cls).parameters
    if cls.argument and not argument and next(iter(taken.values())).default is inspect.Parameter.empty:
        raise WorkloadError(f"{name} needs an argument: write {name}:{cls.argument}")
    chosen = {"turns": turns, "tokens": tokens, "n": None if n == 1 else n}
    options: dict[str, Any] = {option: value for option, value in chosen.items() if value is not None}
    for option in options:
        if option not in taken:
            others = names_with_option(option)
            where = (
                f"the {', '.join(others)} workload{'s' * (len(others) > 1)} only" if others else "none of the workloads"
            )
            raise WorkloadError(f"{option} applies to {where}, not to {spec!r}")
    options |= {option: value for option, value in {"n": n, "seed": seed, "count": count}.items() if option in taken}
    make: Callable[..., Workload] = cls
    return make(*([argument] if argument else []), **options)
