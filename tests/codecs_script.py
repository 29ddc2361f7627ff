"""The modules of experiments/codecs, which is no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CODECS = Path(__file__).resolve().parents[1] / "experiments" / "codecs"


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(CODECS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(CODECS))


forced_kl: Any = _module("forced_kl")
ranks: Any = _module("ranks")
row_errors: Any = _module("row_errors")
texts: Any = _module("texts")
