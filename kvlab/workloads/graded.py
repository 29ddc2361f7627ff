"""A workload whose answers are graded by metrics that were named beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Workload, WorkloadRequest
from kvlab.workloads.metrics import MetricLike, answer_texts, find_metrics


class Graded(Workload):
    """The requests of a workload, graded by metrics wherever there is a right answer.

    Every metric grades one right answer when this is made, so that one that cannot work is refused before any model
    has run. Raises WorkloadError for a metric that does not exist or does not suit, UserCodeError for one that fails.
    """

    def __init__(self, workload: Workload, metrics: MetricLike | Iterable[MetricLike]) -> None:
        if getattr(workload, "teacher_forced", False):
            raise WorkloadError(f"{workload.name} has no answers to grade; leave the metric out")
        self.name = workload.name
        self._workload = workload
        self._metrics = find_metrics(metrics)
        answered = [request for request in self.requests() if request.reference is not None]
        if not answered:
            names = " and ".join(metric.name for metric in self._metrics)
            raise WorkloadError(
                f"{self.name} has no right answer that {names} could compare; write an answer beside each"
            )
        self._check_texts(answered)
        answered[0].grade(answered[0].wanted)

    def requests(self) -> list[WorkloadRequest]:
        return [self._regraded(request) for request in self._workload.requests()]

    def _regraded(self, request: WorkloadRequest) -> WorkloadRequest:
        """Return a plain request with these metrics: a class of its own may grade in a way of its own."""
        values = {field.name: getattr(request, field.name) for field in fields(WorkloadRequest)}
        return WorkloadRequest(**{**values, "metrics": self._metrics})

    def _check_texts(self, answered: list[WorkloadRequest]) -> None:
        for metric in self._metrics:
            for request in answered:
                if metric.takes_texts and request.answer is not None and answer_texts(request.answer) is None:
                    raise WorkloadError(
                        f"{metric.name} compares texts, and the answer of {request.conversation} is "
                        f"{request.wanted[:60]}; write text, or name a metric of your own"
                    )
