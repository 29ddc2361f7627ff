"""The ``kvlab`` command: one thin function per command."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvlab import bench as benchmarks
from kvlab.cli.output import Document, answer, document, json_option, quantity, table
from kvlab.cli.user_files import import_all, import_option
from kvlab.errors import BackendWarning, KvlabError, PolicyError, PolicyWarning
from kvlab.version import __version__
from kvlab.workloads import metric_names, names_with_option, workload_names

if TYPE_CHECKING:
    from kvlab.systems import System

model_option = click.option(
    "--model", metavar="MODEL", help="A folder, a Hugging Face id, a GGUF file or a name of kvlab models; else bundled."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the model's weights; else float32 on CPUs, as stored on GPUs.",
)
adapter_option = click.option(
    "--adapter", metavar="DIR", help="Folder of an adapter for the model, as mlx_lm.lora writes it."
)
out_option = click.option(
    "--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Run folder; else one in runs/."
)
RANK_SET_BY_LAUNCH = "MLX_RANK"
"""What ``mlx.launch`` tells each process that it starts."""

repeats_option = click.option(
    "--repeats", type=click.IntRange(min=1), help="Measurements of every policy, in turns: gives medians and ranges."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the workload.")


class Lazy(click.Group):
    """A group that imports some of its commands on first use, so that ``--help`` stays quick."""

    elsewhere = {
        "advise": "kvlab.cli.advise:advise",
        "ask": "kvlab.cli.ask:ask",
        "audit": "kvlab.cli.audit:audit",
        "lab": "kvlab.cli.lab:lab",
        "replay": "kvlab.cli.replay:replay",
        "store": "kvlab.cli.store:app",
        "serve": "kvlab.cli.serve:serve",
        "run": "kvlab.cli.run:run",
        "figures": "kvlab.cli.figures:figures",
        "models": "kvlab.cli.models:models",
        "systems": "kvlab.cli.systems:systems",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.elsewhere[cmd_name].partition(":")
        return getattr(importlib.import_module(module), name)


@click.group(name="kvlab", cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kvlab")
def cli() -> None:
    """A laboratory for KV caching on MLX."""
    if os.environ.get(RANK_SET_BY_LAUNCH):
        raise KvlabError(
            "a command of kvlab computes in one process; mlx.launch starts Python programs that load a model with "
            "tensor_parallel=True"
        )


@cli.command()
@out_option
@json_option
def demo(out: Path | None, as_json: bool) -> None:
    """Run five policies on the bundled model, with a restart in the middle, and write a report."""
    from kvlab.cli.demo import demo as run

    answer(as_json, lambda: run(out=out).document("demo"))


@cli.command()
@click.option("--policies", "specs", multiple=True, metavar="A,B,...", help="Policies; may be repeated.")
@click.option("--system", "systems", multiple=True, metavar="A,B,...", help="Systems beside them; may be repeated.")
@click.option(
    "--workload", required=True, metavar="NAME", help=f"One of: {', '.join(workload_names())}, or a .jsonl file."
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help=f"Grades the answers: {', '.join(metric_names())}, or your own; may be repeated.",
)
@import_option
@model_option
@adapter_option
@dtype_option
@click.option("--turns", type=click.IntRange(min=1), help="Turns of each conversation.")
@click.option("--n", type=click.IntRange(min=1), help="Conversations.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Conversations at a time; else as many as --n.")
@click.option(
    "--tokens", type=click.IntRange(min=1), help=f"Length of a prompt; for {', '.join(names_with_option('tokens'))}."
)
@seed_option
@click.option(
    "--share-prompts",
    metavar="SIZE",
    help="RAM such as 6GB: prompts are computed once for all policies that begin with the same KV; no TTFT then.",
)
@repeats_option
@click.option(
    "--budget",
    "budgets",
    metavar="A,B,...",
    help="Budgets for each policy that evicts by scores: shares such as 0.25, or tokens; 1 evicts nothing.",
)
@click.option(
    "--certify",
    "promises",
    multiple=True,
    metavar="METRIC:BOUND@CONFIDENCE",
    help="Finds the smallest budget that loses no more, such as equal_call:1%@95%; may be repeated.",
)
@out_option
@json_option
@click.pass_context
def compare(
    context: click.Context,
    specs: tuple[str, ...],
    systems: tuple[str, ...],
    workload: str,
    metrics: tuple[str, ...],
    imports: tuple[Path, ...],
    model: str | None,
    adapter: str | None,
    dtype: str | None,
    turns: int | None,
    n: int | None,
    concurrency: int | None,
    tokens: int | None,
    seed: int,
    share_prompts: str | None,
    repeats: int | None,
    budgets: str | None,
    promises: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Run one workload under several policies and systems, and compare them."""
    if not specs and not systems:
        raise click.UsageError("Missing option '--policies' or '--system'")
    policies = split_policies(specs) if specs else []
    from kvlab.experiments.run import compare_command
    from kvlab.policies import with_budgets
    from kvlab.results.certified import CertifyRequest

    shares = read_budgets(budgets)
    asked = [CertifyRequest.read(text) for text in promises]

    def run() -> Document:
        import_all(imports)
        results = compare_command(
            [*(with_budgets(policies, shares) if shares else policies), *read_systems(systems)],
            workload,
            metrics=metrics,
            model=model_source(model, None, dtype),
            turns=turns,
            n=n,
            seed=seed,
            concurrency=concurrency,
            tokens=tokens,
            adapter=adapter,
            share_prompts=share_prompts,
            repeats=repeats or 1,
            out=out,
            command=context.find_root().obj,
        )
        made = results.document("compare")
        for one in asked:
            certificate = one.of(results.frame())
            print(f"\n{certificate}")
            made["rows"] = [*made["rows"], *certificate.rows()]
        return made

    answer(as_json, run)


@cli.command()
@import_option
@json_option
def policies(imports: tuple[Path, ...], as_json: bool) -> None:
    """List the modules of policies."""
    from kvlab.policies import registry

    def rows() -> Document:
        import_all(imports)
        return document(
            "policies",
            [
                {"name": info.name, "slot": info.slot, "parameters": info.parameters, "paper": info.paper}
                for info in registry()
            ],
        )

    def show(listed: Document) -> None:
        shown = [{**row, "parameters": _parameters(row["parameters"])} for row in listed["rows"]]
        table(shown, ("slot", "name", "parameters", "paper"))
        click.echo("\nCompose with |, set with name:key=value. For example: 'paged:block=64|quantized:bits=4'")

    answer(as_json, rows, show)


@cli.command()
@model_option
@adapter_option
@dtype_option
@json_option
def doctor(model: str | None, adapter: str | None, dtype: str | None, as_json: bool) -> None:
    """What kvlab runs on: device, versions, memory, BLAS, folders, and what it makes of a model's weights."""

    def examine() -> Document:
        from kvlab.cli import doctor

        return document("doctor", doctor.examine(model_source(model, adapter, dtype)))

    def show(examined: Document) -> None:
        found = examined["rows"]
        width = max(len(row["metric"]) for row in found)
        for row in found:
            click.echo(f"{row['metric'].replace('_', ' '):{width}}  {quantity(row['value'], row['unit'])}")

    answer(as_json, examine, show)


@cli.command(epilog=f"NAME is one of: {', '.join(benchmarks.names())}")
@click.argument("name", metavar="NAME")
@model_option
@adapter_option
@dtype_option
@click.option("--seconds", type=click.FloatRange(min=1), help="About how long it may take; else four minutes.")
@seed_option
@json_option
def bench(
    name: str,
    model: str | None,
    adapter: str | None,
    dtype: str | None,
    seconds: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure one operation beside its yardstick, such as MLX's matrix products beside NumPy's.

    Sizes follow the time there is; what was left out is said on stderr and in rows.
    """
    run = benchmarks.get(name)
    budget = {} if seconds is None else {"seconds": seconds}

    def measure() -> Document:
        return document(f"bench {name}", run(model=model_source(model, adapter, dtype), seed=seed, **budget), seed=seed)

    def show(measured: Document) -> None:
        rows = [
            {key: value for key, value in row.items() if key not in ("value", "unit") and value not in ("", None)}
            | {"result": quantity(row["value"], row["unit"])}
            for row in measured["rows"]
        ]
        columns = dict.fromkeys(key for row in rows for key in row if key not in ("metric", "result"))
        table(rows, [*columns, "metric", "result"])

    answer(as_json, measure, show)


def split_policies(texts: Iterable[str]) -> list[str]:
    """Policy specs from lists such as ``full,tiered:ram=2GB,ssd=20GB,paged``, each given once or more.

    A comma starts a new policy unless a ``key=`` follows it: that is the next parameter of the policy before. ``;``
    always starts a new one, and commas in parentheses never do. Raises PolicyError.
    """
    from kvlab.policies.grammar import split_specs, split_top_level

    specs: list[str] = []
    for text in texts:
        for part in split_top_level(text, ";"):
            specs += split_specs(part)
    if not specs or not all(specs):
        raise PolicyError("an empty policy in the list; write names separated by commas, such as full,paged,tiered")
    return specs


def read_budgets(text: str | None) -> list[int | float]:
    """Return the numbers of a list such as ``0.05,0.25,512``. Raises PolicyError."""
    parts = [part.strip() for part in (text or "").split(",")] if text is not None else []
    try:
        return [int(part) if part.isdigit() else float(part) for part in parts]
    except ValueError as error:
        raise PolicyError(f"--budget {text!r} is no list of numbers; write for example 0.05,0.25,1") from error


def read_systems(texts: Iterable[str]) -> list[System]:
    """Systems from lists such as ``omlx,ollama:variant=article``, each given once or more. Raises KvlabError."""
    if not texts:
        return []
    from kvlab.systems import parse_system

    return [parse_system(spec) for spec in split_policies(texts)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Exit status: 0; 2 for wrong input, with one line on stderr; 130 when interrupted."""
    warnings.showwarning = _Warnings()
    try:
        line = shlex.join(["kvlab", *(sys.argv[1:] if arguments is None else arguments)])
        return cli.main(args=arguments, prog_name="kvlab", standalone_mode=False, obj=line) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "kvlab"
        return _wrong(f"{' '.join(error.format_message().split())} (see: {where} --help)")
    except (KvlabError, click.ClickException) as error:
        return _wrong(error.format_message() if isinstance(error, click.ClickException) else str(error))
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kvlab: stopped", err=True)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _wrong(message: str) -> int:
    click.echo(f"kvlab: {' '.join(message.split())}", err=True)
    return 2


class _Warnings:
    """Shows kvlab's own warnings, each once; a library's deprecations are no news to the user."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, BackendWarning | PolicyWarning) and str(message) not in self._shown:
            self._shown.add(str(message))
            click.echo(f"kvlab: warning: {message}", err=True)


def model_source(model: str | None, adapter: str | None, dtype: str | None = None) -> Any:
    """What loads the model: with an adapter or a dtype, all in one value."""
    if adapter is None and dtype is None:
        return model
    from kvlab.models import ModelSource

    return ModelSource(model, adapter, dtype)


def _parameters(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={'none' if value is None else value}" for key, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
