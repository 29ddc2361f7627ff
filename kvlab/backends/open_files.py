"""Keep the limits of open files when mlx-lm is imported.

mlx-lm sets the soft limit to 2,048 and the hard one to 4,096, once, while it is imported. Where the hard limit is
lower, that raises, and nothing that needs mlx-lm starts; where both are higher, a server loses them for good.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import resource
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

MODULE = "mlx_lm.utils"
"""The module whose import changes the limits."""


def keep_limits() -> None:
    """Have the import of mlx-lm raise the soft limit as far as is allowed, and lower none. Idempotent."""
    if MODULE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as Python would, and wraps its execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_with_limits_kept(module: ModuleType) -> None:
                with _limits_only_raised():
                    execute(module)

            spec.loader.exec_module = execute_with_limits_kept  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _limits_only_raised() -> Iterator[None]:
    set_limits = resource.setrlimit

    def raise_soft_limit(what: int, limits: tuple[int, int]) -> None:
        if what != resource.RLIMIT_NOFILE:
            return set_limits(what, limits)
        soft, hard = resource.getrlimit(what)
        wanted = limits[0] if hard == resource.RLIM_INFINITY else min(limits[0], hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(ValueError, OSError):  # fewer open files are no reason not to start
                set_limits(what, (wanted, hard))

    resource.setrlimit = raise_soft_limit
    try:
        yield
    finally:
        resource.setrlimit = set_limits
