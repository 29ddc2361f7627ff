"""``kvlab replay``: what replacement policies hit of a trace of requests, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvlab.cli.output import Document, answer, document, json_option, table
from kvlab.cli.user_files import import_all, import_option

EXAMPLES = """\b
Examples:
  kvlab replay conversation_trace.jsonl.xz
  kvlab replay sessions.tar.xz --replace lru,sieve,s3fifo --capacity 1%,5% --sample 0.1
  kvlab replay runs/2026-01-01 --kv-bytes 131072 --capacity 2GB,8GB --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("trace", metavar="TRACE", type=click.Path(path_type=Path))
@click.option("--format", metavar="NAME", help="Format of TRACE; else its content tells.")
@click.option("--replace", default="lru", show_default=True, metavar="A,B,...", help="Replacement policies.")
@click.option(
    "--capacity",
    metavar="C,D,...",
    help="Shares of the trace's different blocks such as 5%, sizes such as 2GB, or 8000blocks, 1Mtokens, inf; "
    "else 1% to 50%.",
)
@click.option("--kv-bytes", type=click.IntRange(min=1), metavar="N", help="Bytes of KV a token, for sizes in bytes.")
@click.option("--plain", is_flag=True, help="Each block alone, without parents, as traces of other caches are counted.")
@click.option(
    "--sample",
    type=float,
    default=1.0,
    metavar="R",
    help="Share of the blocks that policies but lru are replayed with.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; else one a core.")
@import_option
@json_option
def replay(
    trace: Path,
    format: str | None,
    replace: str,
    capacity: str | None,
    kv_bytes: int | None,
    plain: bool,
    sample: float,
    workers: int | None,
    imports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say what a tier of some capacity would hit of a trace of requests, under each replacement policy.

    TRACE is a file, plain or packed as .gz, .xz or .tar.xz, or a folder: that of a kvlab run, or of session files.
    """
    from kvlab.replay.replaying import DEFAULT_CAPACITIES
    from kvlab.replay.replaying import replay as run

    made: dict[str, Any] = {}

    def work() -> Document:
        import_all(imports)
        results = made["results"] = run(
            trace,
            replace,
            capacity if capacity is not None else DEFAULT_CAPACITIES,
            format=format,
            plain=plain,
            token_bytes=kv_bytes or 0,
            sample=sample,
            workers=workers,
        )
        return document("replay", results.rows, **results.facts)

    def show(_: Document) -> None:
        from kvlab.replay.results import COLUMNS

        results = made["results"]
        click.echo(f"{results.trace!r}\n")
        table(results.table, COLUMNS)

    answer(as_json, work, show)
