"""The code that the rows of an experiment depend on: its fingerprint by module, and what has changed since."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvlab.caches.codecs import make_codec
from kvlab.caches.retention import LayerPlace, make_retention
from kvlab.decoder.reuse import prefix_cache_of
from kvlab.experiments.config import read_experiment
from kvlab.figures.script import Script
from kvlab.figures.source_code import SourceTree, hash_of
from kvlab.models import BUNDLED, bundled_path
from kvlab.policies import Full, Module, Policy, Rotating
from kvlab.store.replacement import check_replacement
from kvlab.systems import System, policy_of
from kvlab.workloads.registry import known_workloads

MEASURING = (
    "kvlab.experiments.cell",
    "kvlab.experiments.aggregate",
    "kvlab.experiments.event_tables",
    "kvlab.experiments.worker",
)
"""What runs a cell and makes its rows. All that these take names from counts with them."""

DEVICE = ("kvlab.backends", "kvlab.backends.x86")
"""Packages of which every file counts: the device chooses among them."""

NOT_MEASURED = (
    "kvlab.charts",
    "kvlab.results",
    "kvlab.provenance",
    "kvlab.recording.zarr_frames",
    "kvlab.models.catalogue",
    "kvlab.models.gguf",
    "kvlab.errors",
    "kvlab.paths",
    "kvlab.version",
)
"""What shows, names or keeps values, and computes none; and what makes a model's files, which a fingerprint tells."""

IN_TRIALS = (Full(), Rotating())
"""Retentions that a model is tried with, whatever the policy."""

OPENS_STORE = "kvlab.store.from_policy"
"""Decides for every policy whether there is a store."""

WITHOUT_REUSE = ("kvlab.store",)
"""Imported by every decoder, and at work only under policies that keep KV at rest."""
WITHOUT_FILES = ("kvlab.store.ssd", "kvlab.store.answer_files")
"""At work only under policies whose tiers survive a restart."""

LIBRARIES = ("mlx", "mlx-lm")
"""Libraries whose version counts."""


def relevant_code(experiment: Path, source: SourceTree | None = None) -> dict[str, str]:
    """Return a hash for each module, file and library that the rows of an experiment file depend on, by its name.

    Modules: what runs the experiment, with all that it takes names from; of codecs, scorers, reuses, replacements and
    workloads those that the file names. Comments, docstrings and layout do not count. Raises KvlabError.
    """
    source = source or SourceTree()
    script = Script.of(experiment)
    roots, without = _of_script(script, source) if script else _of_cells(experiment)
    roots |= {module for name in DEVICE for module in source.modules_of(name)}
    modules = {OPENS_STORE, *source.closure(roots, {*NOT_MEASURED, *without})}
    found = {module: source.hash(module) for module in sorted(modules)}
    if script:
        for path in sorted(script.path.parent.glob("*.py")):
            found[f"{script.path.parent.name}/{path.name}"] = source.hash(path)
    found[experiment.name] = _settings(experiment)
    found |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | _bundled_model(experiment, script)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what is not as it was, sorted: changed, new and removed."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def _of_cells(experiment: Path) -> tuple[set[str], set[str]]:
    """Return the modules to begin with, and those that none of the file's policies reaches."""
    cells = read_experiment(experiment).cells()
    names = {str(cell.run.workload).partition(":")[0] for cell in cells}
    workloads = {known_workloads()[name].__module__ for name in names}
    candidates = {cell.run.candidate for cell in cells}
    carried_out, without = _of_policies({str(policy_of(one)) for one in candidates})
    presets = {type(one).__module__ for one in candidates if isinstance(one, System)}
    return carried_out.union(MEASURING, workloads, presets), without


def _of_script(script: Script, source: SourceTree) -> tuple[set[str], set[str]]:
    used = {module for path in script.path.parent.glob("*.py") for module in source.taken_from(path)}
    carried_out, without = _of_policies(script.policies)
    return carried_out.union(used, script.modules), without


def _of_policies(specs: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the modules that carry out policies, and those that none of them reaches."""
    policies = [Policy.parse(spec) for spec in specs]
    without: set[str] = set()
    if all(policy.reuse.name == "none" for policy in policies):
        without.update(WITHOUT_REUSE)
    if not any(getattr(policy.tiers, "survives_restart", False) for policy in policies):
        without.update(WITHOUT_FILES)
    return {module for policy in policies for module in _carried_out_by(policy)}, without


def _carried_out_by(policy: Policy) -> Iterator[str]:
    """Yield the modules of kvlab that define the parts of a policy and those that carry them out."""
    for part in (policy.retention, policy.codec, policy.reuse, policy.tiers):
        if part is not None:
            yield from _defining(part)
    for retention in (policy.retention, *IN_TRIALS):
        yield type(make_retention(retention, LayerPlace())).__module__
    yield type(make_codec(policy.codec)).__module__
    if policy.reuse.name != "none":
        yield prefix_cache_of(policy).__module__
    if policy.tiers is not None:
        yield OPENS_STORE
        if replace := getattr(policy.tiers, "replace", None):
            yield check_replacement(replace).__module__


def _defining(part: Module) -> Iterator[str]:
    """Yield the modules of a policy module's class, its bases, and the modules that it wraps."""
    yield from (cls.__module__ for cls in type(part).__mro__ if cls.__module__.startswith("kvlab."))
    for field in dataclasses.fields(part):
        if isinstance(inner := getattr(part, field.name), Module):
            yield from _defining(inner)


def _settings(experiment: Path) -> str:
    """Return a hash of what an experiment file asks for; its title and how a sample is taken say nothing about that."""
    values: dict[str, Any] = tomllib.loads(experiment.read_text(encoding="utf-8"))
    asked = {key: value for key, value in values.items() if key not in ("title", "sample")}
    return hash_of(json.dumps(asked, sort_keys=True, default=str))


def _bundled_model(experiment: Path, script: Script | None) -> dict[str, str]:
    """Return the bundled model's weights, where an experiment runs it."""
    if script is None:
        names = {cell.run.model for cell in read_experiment(experiment).cells()}
        if not names & {None, BUNDLED, "bundled"}:
            return {}
    weights = bundled_path() / "model.safetensors"
    return {f"{bundled_path().name}/{weights.name}": hash_of(weights.read_bytes())}
