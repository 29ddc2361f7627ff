"""``kvlab audit``: what the cache of a server does, seen from outside."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import click

from kvlab.cli.output import Document, answer, document, json_option, table
from kvlab.counts import counted
from kvlab.errors import KvlabError

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("urls", metavar="[URL]", nargs=-1)
@click.option("--policy", metavar="POLICY", help="In place of URL: a kvlab serve of its own with this policy.")
@click.option("--system", metavar="NAME", help="The same with a system: kvlab systems.")
@click.option("--model", metavar="NAME", help="As the server names it; with --policy, as kvlab compare takes it.")
@click.option("--api-key", metavar="KEY", help="Else OPENAI_API_KEY.")
@click.option("--only", "names", multiple=True, metavar="PROBE", help="Only this probe; may be repeated.")
@click.option("--restart", metavar="CMD", help="Shell command that restarts the server, for the probe of that.")
@click.option("--kill", metavar="CMD", help="Shell command that kills the server (kill -9) and starts it again.")
@click.option("--tokens", type=click.IntRange(min=64), default=512, show_default=True, help="Size of a usual prompt.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="After these, no further probe begins.")
@click.option("--salt", metavar="TEXT", help="Makes the prompts the same in two audits; else every audit has its own.")
@click.option("--html", type=FILE, metavar="FILE", help="Write the report card as a page, too.")
@click.option("--against", type=FILE, metavar="CARD", help="A card that --json printed: show both side by side.")
@json_option
def audit(
    urls: tuple[str, ...],
    policy: str | None,
    system: str | None,
    model: str | None,
    api_key: str | None,
    names: tuple[str, ...],
    restart: str | None,
    kill: str | None,
    tokens: int,
    minutes: float | None,
    salt: str | None,
    html: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Find out what the KV cache of the OpenAI-compatible server at URL does, and what that means for agents.

    URL may be a card that --json printed, to see it again or beside another one.
    """
    from kvlab.audit import AuditClient, choose_probes, prepare, run_audit
    from kvlab.audit.own_server import OwnServer
    from kvlab.audit.report_card import (
        card_rows,
        compare_cards,
        comparison_lines,
        duration_text,
        load_card,
        names_of_two,
        server_facts,
        summary,
    )

    if len(urls) > 1:
        raise KvlabError(
            f"{urls[0]} and {urls[1]} are two servers: write kvlab audit {urls[1]} --json > card.json, and then "
            f"kvlab audit {urls[0]} --against card.json"
        )
    url = urls[0] if urls else None
    if sum(given is not None for given in (url, policy, system)) != 1:
        raise KvlabError(
            "write either the server's URL, such as http://127.0.0.1:8080, or --policy and a policy, or --system and "
            "the name of a system"
        )

    def examine() -> Document:
        probes = choose_probes(names)
        with contextlib.ExitStack() as stack:
            address: str = url or ""
            served, commands = model, {"restart": restart, "kill": kill}
            if url is None:
                what = ["--policy", policy or ""] if system is None else ["--system", system]
                given = [*what, *(["--model", model] if model else [])]
                own = stack.enter_context(OwnServer(given))
                address, served, commands = own.url, None, {"restart": own.restart, "kill": own.kill}
            key = api_key or os.environ.get("OPENAI_API_KEY")
            client = stack.enter_context(AuditClient(address, served, key))
            lab = prepare(client, salt=salt or secrets.token_hex(8), tokens=tokens, **commands)
            rows = [finding.row() for finding in run_audit(lab, probes, limit_s=minutes and 60 * minutes)]
            served_as = {} if url is not None else {"policy": system or policy}
            return document("audit", rows, **server_facts(client, lab), **served_as)

    def work() -> Document:
        other = load_card(against) if against else None
        made = load_card(Path(url)) if url and Path(url).is_file() else examine()
        if other is not None:
            made["rows"] = compare_cards(made["rows"], other["rows"])
            made["provenance"]["against"] = other["provenance"]
        if html is not None:
            from kvlab.audit.page import card_page

            html.write_text(card_page(made), encoding="utf-8")
        return made

    def show(made: Document) -> None:
        if against is not None:
            names = names_of_two(made["provenance"])
            table(comparison_lines(made["rows"], names), ("", "probe", "metric", *names, "detail"))
            click.echo(
                f"\n{sum(row['differs'] for row in made['rows'])} of {counted(len(made['rows']), 'row')} differ (≠)."
            )
            return
        table(card_rows(made), ("", "probe", "metric", "value", "what it means for an agent"))
        if took := duration_text(made):
            click.echo(f"\n{took}")
        click.echo(f"\n{summary(made['rows'])}. With --json: all numbers; with --html FILE: a page.")

    answer(as_json, work, show)
