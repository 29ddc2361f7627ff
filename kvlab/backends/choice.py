"""Which backend this process uses: chosen once."""

from __future__ import annotations

import functools
import os
import platform

from kvlab.backends.base import Backend
from kvlab.backends.device import is_cpu
from kvlab.errors import KvlabError

NAMES = ("mlx", "x86")


@functools.cache
def current() -> Backend:
    """The backend of MLX's default device: ``x86`` on x86 CPUs, else ``mlx``.

    ``KVLAB_BACKEND=mlx`` forces what Metal takes. Raises KvlabError for another name.
    """
    asked = os.environ.get("KVLAB_BACKEND", "")
    if asked and asked not in NAMES:
        raise KvlabError(f"KVLAB_BACKEND={asked} is no backend; write one of {', '.join(NAMES)}, or leave it unset")
    # MLX's CPU build has vector exponentials on ARM only.
    is_x86_cpu = is_cpu() and platform.machine() in ("x86_64", "AMD64")
    if asked == "x86" and not is_x86_cpu:
        raise KvlabError("KVLAB_BACKEND=x86 needs MLX on an x86 CPU; leave it unset")
    if is_x86_cpu and asked != "mlx":
        from kvlab.backends.x86.backend import X86Backend  # greenlet is installed on x86 Linux only

        return X86Backend()
    from kvlab.backends.mlx_backend import MlxBackend

    return MlxBackend()
