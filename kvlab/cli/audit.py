"""``kvlab audit``: what the cache of a server does, seen from outside."""

from __future__ import annotations

import os
import secrets

import click

from kvlab.cli.output import Document, answer, document, json_option, table


@click.command()
@click.argument("url", metavar="URL")
@click.option("--model", metavar="NAME", help="As the server names it; not needed where it has one only.")
@click.option("--api-key", metavar="KEY", help="Else OPENAI_API_KEY.")
@click.option("--only", "names", multiple=True, metavar="PROBE", help="Only this probe; may be repeated.")
@click.option("--restart", metavar="CMD", help="Shell command that restarts the server, for the probe of that.")
@click.option("--tokens", type=click.IntRange(min=64), default=512, show_default=True, help="Size of a usual prompt.")
@click.option("--salt", metavar="TEXT", help="Makes the prompts the same in two audits; else every audit has its own.")
@json_option
def audit(
    url: str,
    model: str | None,
    api_key: str | None,
    names: tuple[str, ...],
    restart: str | None,
    tokens: int,
    salt: str | None,
    as_json: bool,
) -> None:
    """Find out what the KV cache of the OpenAI-compatible server at URL does, and what that means for agents."""
    from kvlab.audit import AuditClient, choose_probes, prepare, run_audit

    def work() -> Document:
        probes = choose_probes(names)
        with AuditClient(url, model, api_key or os.environ.get("OPENAI_API_KEY")) as client:
            lab = prepare(client, salt=salt or secrets.token_hex(8), tokens=tokens, restart=restart)
            report = run_audit(lab, probes)
            return document("audit", report.rows(), server=report.facts)

    answer(as_json, work, lambda made: table(made["rows"], ("probe", "metric", "value", "unit", "verdict", "means")))
