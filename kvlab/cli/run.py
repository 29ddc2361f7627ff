"""``kvlab run``: an experiment file on the command line."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from kvlab.cli.main import dtype_option
from kvlab.cli.user_files import import_option


@click.command()
@click.argument("file", metavar="FILE.toml", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Else runs/NAME.")
@click.option("--repeats", type=click.IntRange(min=1), help="Measurements of every cell; else the file's own number.")
@dtype_option
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Runs the cells on Dask: local:N for N processes here, or a scheduler such as tcp://host:8786.",
)
@import_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")
@click.pass_context
def run(
    context: click.Context,
    file: Path,
    out: Path | None,
    repeats: int | None,
    dtype: str | None,
    scheduler: str | None,
    imports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Run the cells of an experiment file that are not finished yet."""
    from kvlab.experiments.dask_sweep import distributed_command
    from kvlab.experiments.sweep import run_command

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        command = context.find_root().obj
        options: dict[str, Any] = {"imports": imports, "repeats": repeats, "dtype": dtype, "command": command}
        if scheduler is None:
            results = run_command(file, out, **options)
        else:
            results = distributed_command(file, scheduler, out, **options)
    if as_json:
        click.echo(json.dumps(results.document("run"), indent=1, allow_nan=False, default=str))
