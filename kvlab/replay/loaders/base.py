"""The base of trace loaders: one class a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace


class TraceLoader(ABC):
    """Reads traces of one format."""

    name: ClassVar[str] = ""
    """What ``--format`` takes."""
    about: ClassVar[str] = ""
    """What a file of the format holds, in a few words."""

    @abstractmethod
    def recognises(self, source: TraceSource) -> bool:
        """Tell from how the content begins whether it is of this format; files of other formats give False."""

    @abstractmethod
    def load(self, source: TraceSource) -> BlockTrace:
        """Read the trace. Raises ``TraceError`` with file, line and what was expected there."""
