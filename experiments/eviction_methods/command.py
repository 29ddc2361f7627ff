"""Run a program of this folder: its arguments, the model that they name, and the document of its rows."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.errors import KvlabError
from kvlab.models import LoadedModel, load

Row = dict[str, Any]
Measured = tuple[Sequence[Row], Mapping[str, Any]]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the arguments that all programs here take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", action="store_true", help="print the rows")
    parser.add_argument("--sample", action="store_true", help="measure a few of the rows only")
    return parser


def run(name: str, asked: argparse.Namespace, measure: Callable[[LoadedModel, Path], Measured]) -> None:
    """Call ``measure`` with the model and a folder for its files, and print its rows and provenance where asked to.

    Ends the process with status 2 and one line where a KvlabError comes.
    """
    try:
        loaded = load(asked.model)
        with tempfile.TemporaryDirectory(prefix="kvlab-methods-") as folder:
            rows, provenance = measure(loaded, Path(folder))
    except KvlabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.json:
        print(json.dumps({"command": name, "provenance": provenance, "rows": rows}, default=str))
