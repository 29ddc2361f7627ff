"""``--import FILE.py``: a user's own policies, workloads and metrics on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

import_option = click.option(
    "--import",
    "imports",
    multiple=True,
    metavar="FILE.py",
    type=click.Path(path_type=Path),
    help="Your own policies, workloads and metrics; may be repeated.",
)


def import_all(files: Iterable[Path]) -> None:
    """Import files in their order, before the names that they define are read. Raises UserCodeError."""
    from kvlab.importing import import_user_file

    for file in files:
        import_user_file(file)
