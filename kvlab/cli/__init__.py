"""The ``kvlab`` command: one thin function per command."""

from kvlab.cli.main import cli, main

__all__ = ["cli", "main"]
