"""Experiments that are a program of their own: a TOML file names it instead of policies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvlab.errors import RunError
from kvlab.paths import PACKAGE

LISTS = ("arguments", "modules", "policies", "sample")
KEYS = ("title", "script", *LISTS)


@dataclass(frozen=True)
class Script:
    """A program that measures: called with ``--json`` it prints one document of tidy rows, and nothing else.

    Args:
        path: its file; all Python files beside it count as its code.
        arguments: what it is called with.
        modules: modules of kvlab that it runs in processes of their own.
        policies: specs of the policies that it runs.
        sample: further arguments, with which it measures a few of its rows, from nothing; empty where it cannot.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()

    @classmethod
    def of(cls, experiment: Path) -> Script | None:
        """Read it from an experiment file; None where the file names policies instead. Raises RunError."""
        try:
            values = tomllib.loads(experiment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # `read_experiment` says what is wrong with it
        if "script" not in values:
            return None
        if unknown := set(values) - set(KEYS):
            raise RunError(f"{experiment}: unknown key {min(unknown)!r} beside script; known are {', '.join(KEYS)}")
        path = experiment.parent / str(values["script"])
        if not path.is_file():
            raise RunError(f"{experiment}: there is no {path}; write the path of a program, from this file's folder")
        for key in LISTS:
            if not isinstance(values.get(key, []), list):
                raise RunError(f"{experiment}: {key} is {values[key]!r}; write a list in brackets")
        return cls(path, *(tuple(map(str, values.get(key, []))) for key in LISTS))

    def run(self, *more: str) -> dict[str, Any]:
        """Run it with this Python, its arguments and ``more``, and return its document.

        Raises RunError where it fails or prints anything else.
        """
        root = str(PACKAGE.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, str(self.path), *self.arguments, *more, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        if done.returncode != 0:
            raise RunError(f"{self.path} ended with status {done.returncode}; its last lines say why")
        try:
            document = json.loads(done.stdout)
            if not (isinstance(document["rows"], list) and isinstance(document["provenance"], dict)):
                raise ValueError("rows is no list, or provenance no object")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path} printed no document of rows ({error}); print it with --json") from error
        return document
