"""``kvlab store``: a click group to mount in the command line."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kvlab.store import commands
from kvlab.store.remote import commands as remote_commands

dir_option = click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), help="The folder; else KVLAB_HOME/store."
)
tenant_option = click.option("--tenant", metavar="NAME", help="This tenant only ('' for the one without a name).")
remote_option = click.option("--remote", metavar="URL", help="A remote that machines share, instead of a folder.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")


@click.group(name="store")
def app() -> None:
    """List, verify and remove KV at rest, on SSD or in a remote."""


@app.command()
@dir_option
@remote_option
@tenant_option
@json_option
def ls(directory: Path | None, remote: str | None, tenant: str | None, as_json: bool) -> None:
    """List sizes, ages and miss reasons, by model and policy; of a remote, sizes and ages of all."""
    if remote is not None:
        _check_remote(directory, tenant)
        _answer("store ls", as_json, lambda: remote_commands.ls(remote))
        return
    _answer("store ls", as_json, lambda: commands.ls(_folder(directory), tenant=tenant))


@app.command()
@dir_option
@remote_option
@tenant_option
@click.option("--repair", is_flag=True, help="Quarantine bad blocks, index sound ones, sweep leftovers.")
@json_option
def verify(directory: Path | None, remote: str | None, tenant: str | None, repair: bool, as_json: bool) -> None:
    """Read every block. Exit status 1 when one was bad, missing or unreadable."""

    def work() -> list[commands.Row]:
        if remote is None:
            return commands.verify(_folder(directory), tenant=tenant, progress=True, repair=repair)
        return remote_commands.verify(remote, progress=True, repair=repair)

    if remote is not None:
        _check_remote(directory, tenant)
    rows = _answer("store verify", as_json, work)
    if any(row["metric"] in ("corrupt", "unreadable", "unlisted", "set_aside") and row["value"] for row in rows):
        raise click.exceptions.Exit(1)


@app.command()
@click.option("--keep", metavar="SIZE", help="Bytes to keep, such as 5GB: the least recently used go.")
@click.option("--unused", metavar="TIME", help="Remove blocks that were not used for so long, such as 12h or 30d.")
@dir_option
@remote_option
@tenant_option
@json_option
def prune(
    keep: str | None,
    unused: str | None,
    directory: Path | None,
    remote: str | None,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Remove old blocks, leaves first."""
    size, seconds = _quantity(keep, _SIZES, "--keep", "5GB"), _quantity(unused, _TIMES, "--unused", "12h")
    bytes_to_keep = None if size is None else int(size)

    def work() -> list[commands.Row]:
        if remote is not None:
            return remote_commands.prune(remote, keep=bytes_to_keep, unused=seconds)
        folder = _folder(directory)
        return commands.prune(folder, keep=bytes_to_keep, unused=seconds, tenant=tenant, progress=True)

    if remote is not None:
        _check_remote(directory, tenant)
    _answer("store prune", as_json, work)


@app.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@dir_option
@tenant_option
@json_option
def clear(yes: bool, directory: Path | None, tenant: str | None, as_json: bool) -> None:
    """Remove every block, or every block of one tenant."""
    folder = _folder(directory)
    if not yes:
        whose = "every block" if tenant is None else f"every block of tenant '{tenant}'"
        click.confirm(f"Remove {whose} in {folder}?", abort=True, err=True)
    _answer("store clear", as_json, lambda: commands.clear(folder, tenant=tenant, progress=True))


@app.command()
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", metavar="MODEL", help="As kvlab compare takes it; else bundled.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--k-step", default=0.1, show_default=True, help="Step of keys, in attention logits.")
@click.option("--v-step", default=0.3, show_default=True, help="Step of values, relative to those of their layer.")
@click.option("--tokens", default=6144, show_default=True, type=click.IntRange(min=1), help="Most tokens to read.")
def fit(texts: tuple[Path, ...], model: str | None, out: Path, k_step: float, v_step: float, tokens: int) -> None:
    """Fit the transform of kvtc:transform=FILE to a model, on TEXTS of the kind that will be stored."""
    from kvlab.caches.storage_codec import transform_of_text
    from kvlab.models import load

    loaded = load(model)
    # Paragraph by paragraph: tokenizers warn of texts that are longer than a model's context.
    parts = (part for path in texts for part in path.read_text(encoding="utf-8").split("\n\n"))
    found = [token for part in parts for token in loaded.encode(f"{part}\n\n")]
    transform_of_text(loaded.model, found, k_step=k_step, v_step=v_step, most_tokens=tokens).save(out)
    click.echo(f"{out}: use it as kvtc:transform={out}|tiered")


_SIZES = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_TIMES = {"": 1.0, "S": 1.0, "M": 60.0, "H": 3600.0, "D": 86400.0}


def _quantity(text: str | None, units: dict[str, float], option: str, example: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in units:
        raise click.BadParameter(f"{text!r} is not understood; write for example {example}", param_hint=option)
    return float(found[1]) * units[found[2].upper()]


def _check_remote(directory: Path | None, tenant: str | None) -> None:
    """Raise BadParameter for options that mean nothing for a remote."""
    if directory is not None:
        raise click.BadParameter("a remote is no folder; leave one of --dir and --remote out", param_hint="--remote")
    if tenant is not None:
        raise click.BadParameter("names in a remote do not tell tenants; leave --tenant out", param_hint="--tenant")


def _folder(directory: Path | None) -> Path:
    from kvlab.paths import home

    return (directory or home() / "store").expanduser()


def _answer(command: str, as_json: bool, work: Callable[[], list[commands.Row]]) -> list[commands.Row]:
    """Do the work; print its rows, as one JSON document or as lines. With JSON all other output goes to stderr."""
    if not as_json:
        rows = work()
        for row in rows:
            click.echo(_line(row))
        return rows
    from kvlab.provenance import document

    with contextlib.redirect_stdout(sys.stderr):
        rows = work()
        answer = document(command, rows)
    click.echo(json.dumps(answer, indent=1, allow_nan=False, default=str))
    return rows


def _line(row: commands.Row) -> str:
    if "file" in row:
        return f"{row['metric'].replace('_', ' ')}: {row['file']} ({row['reason']})"
    name = row["metric"].replace("_", " ") + (f" ({row['reason']})" if "reason" in row else "")
    about = ""
    if "model" in row:
        parts = [row["model"][:12], row["policy"] or "lossless", row["dtype"], f"block {row['block']}"]
        about = "  ".join([*parts, *([f"tenant {row['tenant']}"] if row["tenant"] else [])])
    return f"{name:<24}{_human(row['value'], row['unit']):>16}  {about}".rstrip()


def _human(value: Any, unit: str) -> str:
    if unit == "bytes":
        for name in ("B", "KB", "MB", "GB"):
            if value < 1000:
                return f"{value:.3g} {name}"
            value /= 1000
        return f"{value:.3g} TB"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
            if value >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.1f} s"
    return f"{value:,} {unit}"
