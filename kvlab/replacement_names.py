"""The names of replacement policies, for modules that must not load the store.

Each file of ``kvlab/store/replacement`` holds the policy of its own name; a class defined elsewhere adds its name here
when it is defined.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "store" / "replacement"
_NO_POLICIES = ("__init__", "base")
_declared: dict[str, None] = {}


def replacement_files() -> tuple[str, ...]:
    """Return the names of the policies that have a file."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NO_POLICIES))


def replacement_names() -> tuple[str, ...]:
    """Return the names of all replacement policies."""
    files = replacement_files()
    return (*files, *(name for name in _declared if name not in files))


def declare(name: str) -> None:
    """Add the name of a policy."""
    _declared[name] = None
