"""``kvlab models``: what is here, what can be had, and ``get``, which fetches it."""

from __future__ import annotations

from typing import Any

import click

from kvlab.cli.output import answer, document, json_option, quantity, table


@click.group(name="models", invoke_without_command=True)
@json_option
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List models by the names that --model takes, with size, licence, context and bytes of KV."""
    if ctx.invoked_subcommand is not None:
        return

    def rows() -> dict[str, Any]:
        from kvlab.models.listing import list_models

        return document("models", [model.row() for model in list_models()])

    answer(as_json, rows, _show)


@models.command()
@click.argument("name", metavar="NAME")
@click.option("--accept-terms", is_flag=True, help="You accept the terms of this model; without, they are shown.")
@json_option
def get(name: str, accept_terms: bool, as_json: bool) -> None:
    """Fetch the model NAME, verify its checksum and convert it, once."""

    def fetch() -> dict[str, Any]:
        from kvlab.models import fetching
        from kvlab.models.listing import list_models

        if fetching.catalogue_model(name).terms and not accept_terms and not fetching.is_fetched(name):
            click.echo(fetching.licence_text(name))
        fetching.fetch(name, accept_terms=accept_terms)
        return document("models get", [model.row() for model in list_models() if model.name == name])

    def show(fetched: dict[str, Any]) -> None:
        row = fetched["rows"][0]
        click.echo(f"{name} is in {row['path']}, {quantity(row['bytes'], 'bytes')}; use it with --model {name}")

    answer(as_json, fetch, show)


def _show(listed: dict[str, Any]) -> None:
    shown = [
        {
            "name": row["name"],
            "state": "here" if row["here"] else "can be had",
            "size": quantity(row["bytes"], "bytes"),
            "licence": row["licence"],
            "context": f"{row['context']:,}" if row["context"] else "?",
            "KV a token": f"{row['kv_bytes_per_token']:,} bytes" if row["kv_bytes_per_token"] else "?",
            "about": row["about"] if row["here"] else f"{row['about']}; {row['get']}",
        }
        for row in listed["rows"]
    ]
    table(shown, list(shown[0]))
    click.echo(
        "\n--model also takes a folder, a Hugging Face id and a GGUF file. The size of a model that can be had is that "
        "of the download; KV is counted in the dtype that it is computed in here."
    )
