"""``python -m kvlab.server``: the same as ``kvlab serve``."""

import sys

import click

from kvlab.cli.serve import serve
from kvlab.errors import KvlabError

try:
    serve.main(prog_name="kvlab serve", standalone_mode=False)
except (KvlabError, click.ClickException) as error:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    click.echo(f"kvlab: {' '.join(message.split())}", err=True)
    sys.exit(2)
