"""``kvlab systems``: the cache designs of six servers, with every setting and its source."""

from __future__ import annotations

from typing import Any

import click

from kvlab.cli.output import answer, document, json_option, table


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@json_option
def systems(name: str | None, as_json: bool) -> None:
    """List the systems that --system takes; of one NAME all settings, each with its source."""
    from kvlab.policies.slots import format_value
    from kvlab.systems import SystemTable, all_systems, parse_system

    listed = all_systems() if name is None else SystemTable([parse_system(name)])

    def show(made: dict[str, Any]) -> None:
        if name is None:
            table(listed.short_rows, list(listed.short_rows[0]))
            click.echo("\nAll settings with their sources: kvlab systems NAME. To serve one: kvlab serve --system NAME")
            return
        [row] = made["rows"]
        shown = [
            {"setting": key, "value": format_value(value), "source": row["sources"][key]}
            for key, value in row["settings"].items()
        ]
        click.echo(f"{row['system']}: {row['policy']}\n")
        table(shown, ("setting", "value", "source"))
        click.echo("".join(f"\nLeft out: {sentence}" for sentence in row["leaves_out"]))

    answer(as_json, lambda: document("systems", listed.rows), show)
