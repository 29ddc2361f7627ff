"""The modules of experiments/stack, which is no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

STACK = Path(__file__).resolve().parents[1] / "experiments" / "stack"


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(STACK))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(STACK))


stack: Any = _module("measure")
memory: Any = _module("memory")
