"""``kvlab advise``: which cache design and which settings fit a workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kvlab.cli.output import Document, answer, document, json_option, table
from kvlab.cli.user_files import import_all, import_option

FILE = click.Path(dir_okay=False, path_type=Path)
EXAMPLES = """\b
Examples:
  kvlab advise --agents 8 --turns 15 --memory 8GB --measure
  kvlab advise --system-tokens 3000 --restarts 2 --prefill 500 --decode 20
  kvlab advise --transcript airline.json.xz --n 4 --memory 500MB --ssd 0 --measure
  kvlab advise --agents 32 --kv-bytes 131072 --memory 24GB --card card.json --lossy
"""


def described(name: str, text: str) -> Any:
    """An option that describes a workload; its default is that of the description."""
    return click.option(f"--{name}", type=click.IntRange(min=0), metavar="N", help=text)


@click.command(epilog=EXAMPLES)
@click.option("--transcript", type=FILE, metavar="FILE", help="Own conversations, as kvlab compare reads them.")
@click.option("--workload", metavar="NAME", help="Or a workload of kvlab compare, such as agent.")
@click.option("--n", type=click.IntRange(min=1), help="Conversations of it that go on at once; else 1.")
@described("agents", "Or in numbers: agents at once; else 1.")
@described("sessions", "Conversations of each, one after the other; else 1.")
@described("turns", "Turns of a conversation; else 15, or all of a transcript.")
@described("system-tokens", "Tokens of the system prompt and tools, the same for all; else 1,500.")
@described("turn-tokens", "Tokens that a turn or a tool's result adds; else 120.")
@described("answer-tokens", "Tokens of an answer or a call; else 60.")
@described("tool-calls", "Calls in a turn; else 0.")
@described("think-tokens", "Tokens of thinking before each answer, dropped from the history; else 0.")
@described("restarts", "Restarts of the server meanwhile; else 0.")
@click.option("--pause", type=click.FloatRange(0), metavar="S", help="Seconds between an answer and the next message.")
@click.option("--memory", default="4GB", show_default=True, metavar="SIZE", help="For KV, without the weights.")
@click.option("--ssd", default="20GB", show_default=True, metavar="SIZE", help="For KV at rest; 0 is none.")
@click.option("--measure", is_flag=True, help="Measure how quick the model is here.")
@click.option("--prefill", type=float, metavar="X", help="Else: prompt tokens a second.")
@click.option("--decode", type=float, metavar="X", help="And tokens a second of an answer.")
@click.option("--card", type=FILE, metavar="FILE", help="Else: the curve of a card that kvlab audit --json printed.")
@click.option("--ssd-speed", metavar="SIZE", help="Read from SSD in a second, such as 3GB; else 2GB, or measured.")
@click.option("--kv-bytes", type=click.IntRange(min=1), metavar="N", help="Bytes of KV a token, of another model.")
@click.option("--lossy", is_flag=True, help="Also designs whose answers may differ, such as quantized KV.")
@click.option(
    "--quality",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="RUN",
    help="A run folder of kvlab compare: lossy designs are those that hold --promise there.",
)
@click.option("--promise", metavar="METRIC:BOUND@CONFIDENCE", help="As kvlab compare --certify; else accuracy:5%@95%.")
@click.option("--model", metavar="MODEL", help="As kvlab compare takes it; else bundled.")
@import_option
@json_option
def advise(
    transcript: Path | None,
    workload: str | None,
    n: int | None,
    pause: float | None,
    memory: str,
    ssd: str,
    measure: bool,
    prefill: float | None,
    decode: float | None,
    card: Path | None,
    ssd_speed: str | None,
    kv_bytes: int | None,
    lossy: bool,
    quality: Path | None,
    promise: str | None,
    model: str | None,
    imports: tuple[Path, ...],
    as_json: bool,
    **numbers: int | None,
) -> None:
    """Say which cache design and which settings fit a workload, and the line that serves it.

    Each design is replayed on the tokens of the workload without running a model; waits follow from how quick the
    machine is.
    """
    if transcript is not None and workload is not None:
        raise click.UsageError("--transcript and --workload exclude each other: keep one")
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if pause is not None:
        given["pause_s"] = pause
    if promise is not None:
        if quality is None:
            raise click.UsageError("--promise is what a run has to hold: write --quality RUN too")
        given["promise"] = promise
    if n is not None and transcript is None and workload is None:
        raise click.UsageError("--n counts conversations of --transcript: write --agents for a described workload")
    from kvlab.advising import advise as run

    made: dict[str, Any] = {}

    def work() -> Document:
        import_all(imports)
        advice = made["advice"] = run(
            workload or transcript,
            model=model,
            memory=memory,
            ssd=ssd,
            prefill=prefill,
            decode=decode,
            ssd_speed=ssd_speed,
            measure=measure,
            card=card,
            kv_bytes=kv_bytes,
            lossy=lossy,
            quality=quality,
            n=n,
            **given,
        )
        return document("advise", advice.rows, **advice.facts)

    def show(_: Document) -> None:
        from kvlab.advising.advice import COLUMNS

        advice = made["advice"]
        click.echo(f"{advice}\n")
        table(advice.table, COLUMNS)

    answer(as_json, work, show)
