"""``kvlab figures``: build, measure again, and check."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--rerun", is_flag=True, help="Measure the experiments again first; some minutes.")
@click.option("--confirm", is_flag=True, help="Sign saved rows of older code where a sample comes out the same.")
@click.option("--check", is_flag=True, help="Write nothing into the docs; exit status 1 where something is wrong.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="This figure; may be repeated.")
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Else docs/figures.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")
def figures(rerun: bool, confirm: bool, check: bool, names: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Build the figures of the docs from saved rows.

    With --check: do the pictures follow from the rows, and do the rows support the claims? With --rerun
    --check: does a fresh run contradict a claim beyond its tolerance?
    """
    from kvlab.figures.command import figures_command

    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        document, problems = figures_command(names, fresh=rerun, check=check, confirm=confirm, out=out)
    if as_json:
        shown: dict[str, Any] = {**document, "problems": problems}
        click.echo(json.dumps(shown, indent=1, allow_nan=False, default=str))
    for problem in problems:
        click.echo(f"kvlab: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)
