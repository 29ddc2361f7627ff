"""Where kvlab keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of the running kvlab: in a source tree, or in an installed wheel."""


def home() -> Path:
    """The folder under which kvlab keeps everything: ``KVLAB_HOME``, else ``~/.cache/kvlab``. Not created here."""
    return Path(os.environ.get("KVLAB_HOME") or Path.home() / ".cache" / "kvlab").expanduser()
