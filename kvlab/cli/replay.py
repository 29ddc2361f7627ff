"""``kvlab replay``: what replacement policies hit of a trace of requests, without a model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
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
  kvlab replay sessions.tar.xz --ram 2GB,8GB --ssd 0,100GB --cost cost.json
  kvlab replay sessions.tar.xz --ram 8GB --ssd 100GB --kv-bytes 147456 --cost prefill=450,ssd=3GB --restore auto
  kvlab replay sessions.tar.xz --replace lru,lfu,arc --scheduler tcp://mac-1:8786
  kvlab replay sessions.tar.xz --plan 95% --kv-bytes 147456
  kvlab replay sessions.tar.xz --plan ttft_p95=2s --cost cost.json
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
@click.option("--ram", metavar="C,D,...", help="RAM over SSD in place of one tier: sizes of RAM, as --capacity.")
@click.option("--ssd", metavar="C,D,...", help="And of the SSD below it; else none.")
@click.option(
    "--plan",
    is_flag=False,
    flag_value="95%",
    metavar="TARGET",
    help="The smallest RAM and SSD for 95% of what a cache without limit would hit, or for a wait: ttft_p95=2s.",
)
@click.option(
    "--cost",
    metavar="SPEEDS",
    help="How quick machine and model are, for waits: a file of kvlab bench cost --json, or prefill=450,ssd=3GB,...",
)
@click.option("--restore", type=click.Choice(["always", "auto"]), help="auto: compute again what that has sooner.")
@click.option("--admit", type=click.IntRange(min=1), metavar="N", help="Uses after which a block is written to SSD.")
@click.option("--endurance", metavar="SIZE", help="Bytes that may be written to the drive; else 600TB.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Requests that are served side by side, for waits; else one after the other, and answers hold nobody up.",
)
@click.option("--causes", is_flag=True, help="Why a cache without limit computes tokens: appended, edited, and so on.")
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
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Replays on Dask: local:N for N processes here, or a scheduler such as tcp://host:8786.",
)
@import_option
@json_option
def replay(
    trace: Path,
    format: str | None,
    replace: str,
    capacity: str | None,
    ram: str | None,
    ssd: str | None,
    plan: str | None,
    cost: str | None,
    restore: str | None,
    admit: int | None,
    endurance: str | None,
    concurrency: int | None,
    causes: bool,
    kv_bytes: int | None,
    plain: bool,
    sample: float,
    workers: int | None,
    scheduler: str | None,
    imports: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say what a tier of some capacity would hit of a trace of requests, under each replacement policy.

    TRACE is a file, plain or packed as .gz, .xz or .tar.xz, or a folder: that of a kvlab run, or of session files.
    """
    sized = {"capacity": capacity, "plain": plain or None, "sample": sample if sample < 1 else None}
    tiered = {"ssd": ssd, "cost": cost, "restore": restore, "admit": admit, "endurance": endurance}
    tiered |= {"concurrency": concurrency}
    if scheduler is not None:
        _check_spread({"plan": plan, "causes": causes or None, "workers": workers})
    _check_kind({"plan": plan, "causes": causes or None, "ram": ram}, sized, tiered)
    common: dict[str, Any] = {"format": format}
    sizes: dict[str, Any] = {"token_bytes": kv_bytes or 0}
    tiers: dict[str, Any] = {name: value for name, value in tiered.items() if value is not None}

    def replayed() -> Any:
        import kvlab.replay as replays

        import_all(imports)
        if causes:
            return replays.recompute_causes(replays.load_trace(trace, format))
        if plan is not None:
            return replays.plan(trace, plan, replace, **common, **sizes, **tiers)
        with contextlib.ExitStack() as stack:
            client = None if scheduler is None else stack.enter_context(_connected(scheduler))
            spread: dict[str, Any] = {"workers": workers, "client": client}
            if ram is not None:
                return replays.replay_tiers(trace, ram, replace=replace, **spread, **common, **sizes, **tiers)
            given: dict[str, Any] = {} if capacity is None else {"capacity": capacity}
            return replays.replay(trace, replace, plain=plain, sample=sample, **spread, **given, **common, **sizes)

    made: list[Any] = []

    def work() -> Document:
        made.append(replayed())
        return document("replay", made[0].rows, **made[0].facts)

    def show(_: Document) -> None:
        results = made[0]
        click.echo(f"{getattr(results, 'title', None) or repr(results.trace)}\n")
        table(results.table, list(results.table[0]))

    answer(as_json, work, show)


def _connected(scheduler: str) -> contextlib.AbstractContextManager[Any]:
    """Connect to the cluster of ``--scheduler``. Raises RunError."""
    from kvlab.experiments.dask_cluster import SchedulerChoice, connected

    return connected(SchedulerChoice.parse(scheduler))


def _check_spread(others: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for options that leave a cluster nothing to do, or that choose processes here."""
    reasons = {
        "plan": "--plan replays one size after the other, each found from those before",
        "causes": "--causes replays nothing",
        "workers": "--workers is the number of processes of this machine",
    }
    for name, value in others.items():
        if value is not None:
            raise click.UsageError(f"{reasons[name]}: leave --scheduler out, or --{name}")


def _check_kind(kinds: Mapping[str, Any], of_one_tier: Mapping[str, Any], of_two: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for options of several kinds of replay: one tier, RAM over SSD, a plan, or causes."""
    given = {name: value for name, value in {**kinds, **of_one_tier, **of_two}.items() if value is not None}
    may_have = {"plan": ("cost", "restore", "admit"), "causes": (), "ram": tuple(of_two)}
    kind = next((name for name in kinds if name in given), None)
    for name in given:
        if kind is None and name in of_two:
            raise click.UsageError(f"--{name} is of RAM over SSD: write --ram 8GB too")
        if kind is not None and name != kind and name not in may_have[kind]:
            raise click.UsageError(f"--{kind} and --{name} exclude each other: leave one of them out")
