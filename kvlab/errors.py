"""Errors that kvlab shows to its users: one clear line each, which says what to write instead."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

MAX_SHOWN_FRAMES = 3
LIBRARY_FOLDERS = tuple(
    str(folder) + os.sep
    for folder in (Path(__file__).resolve().parent, sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
)
"""Code in these is not its user's own; each ends with a separator."""


class KvlabError(ValueError):
    """Base of every error that comes from what the user asked for or from the state of the machine.

    In notebooks and IPython it is shown with the lines of its user that led to it, without the inside of kvlab;
    ``%xmode Verbose`` shows all.
    """

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of its own; the name is IPython's."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and shell.InteractiveTB.mode == "Verbose":
            full = shell.InteractiveTB
            return full.structured_traceback(type(self), self, self.__traceback__, tb_offset=full.tb_offset)
        frames = [f for f in traceback.extract_tb(self.__traceback__) if not f.filename.startswith(LIBRARY_FOLDERS)]
        lines = [
            f"{_place(shell, frame.filename)}, line {frame.lineno}\n----> {frame.line}"
            for frame in frames[-MAX_SHOWN_FRAMES:]
        ]
        return [*lines, f"\x1b[31m{type(self).__name__}\x1b[39m: {self}"]


def _place(shell: Any, file: str) -> str:
    """Name a file of a traceback as IPython does: ``Cell In[3]``, or ``File`` and its path."""
    name = shell.compile.format_code_name(file) if shell is not None else None
    return " ".join(name) if name else f"File {file}"


class PolicyError(KvlabError):
    """An unknown policy module, a bad parameter, or a combination that cannot work."""


class ModelError(KvlabError):
    """A model that cannot be found, loaded or used with the policy asked for."""


class StoreError(KvlabError):
    """A store folder that cannot be opened, or a tier with an impossible setting."""


class WorkloadError(KvlabError):
    """An unknown workload, or a transcript that cannot be read."""


class RunError(KvlabError):
    """An experiment file, run folder or figure that cannot be used."""


class SpeedError(KvlabError):
    """A speed of a machine and a model that is impossible or cannot be read."""


class UserCodeError(KvlabError):
    """A file or a metric of the user's own that fails, or gives what kvlab cannot use."""


class PolicyWarning(UserWarning):
    """A policy that will run, but hardly as it is meant to."""


class BackendWarning(UserWarning):
    """MLX will run, but slower than it could, or not on the device that was installed for it."""
