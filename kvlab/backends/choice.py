"""Choose the backend of this process, once."""

from __future__ import annotations

import functools
import os
import platform

from kvlab.backends.base import Backend
from kvlab.backends.device import is_cpu
from kvlab.errors import KvlabError

BACKEND_NAMES = ("mlx", "x86")
"""Values of ``KVLAB_BACKEND``."""


@functools.cache
def current() -> Backend:
    """Return the backend of MLX's default device: ``x86`` on x86 CPUs, else ``mlx``.

    ``KVLAB_BACKEND=mlx`` forces the backend that Metal uses. Raises KvlabError for an unknown name, and for ``x86`` on
    another device.
    """
    asked = os.environ.get("KVLAB_BACKEND", "")
    if asked and asked not in BACKEND_NAMES:
        raise KvlabError(
            f"KVLAB_BACKEND={asked} is no backend; write one of {', '.join(BACKEND_NAMES)}, or leave it unset"
        )
    # MLX's CPU build has vector exponentials on ARM only.
    is_x86_cpu = is_cpu() and platform.machine() in ("x86_64", "AMD64")
    if asked == "x86" and not is_x86_cpu:
        raise KvlabError("KVLAB_BACKEND=x86 needs MLX on an x86 CPU; leave it unset")
    if is_x86_cpu and asked != "mlx":
        from kvlab.backends.x86.backend import X86Backend  # greenlet is installed on x86 Linux only

        return X86Backend()
    from kvlab.backends.mlx_backend import MlxBackend

    return MlxBackend()
