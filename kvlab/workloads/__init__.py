"""Conversations to serve, generated or replayed, with known answers: one file for each workload.

To add a workload, define a subclass of :class:`Workload` with a ``name``, in a file of this folder or anywhere else:
:func:`load_workload`, experiment files and the command line know it from then on.
"""

import importlib
import pkgutil

from kvlab.errors import WorkloadError
from kvlab.workloads.base import KINDS, Message, Workload, WorkloadRequest
from kvlab.workloads.metrics import MetricLike, metric_names
from kvlab.workloads.own import Own
from kvlab.workloads.registry import (
    WorkloadLike,
    as_workload,
    is_teacher_forced,
    load_workload,
    names_with_option,
    workload_names,
)

__all__ = [
    "KINDS", "Message", "MetricLike", "Own", "WorkloadRequest", "Workload", "WorkloadError", "WorkloadLike",
    "as_workload", "is_teacher_forced", "load_workload", "metric_names", "names_with_option", "workload_names",
]  # fmt: skip

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
