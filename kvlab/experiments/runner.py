"""The prompts of one workload under one model, served under any number of policies, and their rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kvlab import models
from kvlab.decoder import logit_distance
from kvlab.decoder.shared_prompts import SharedPrompts
from kvlab.errors import RunError
from kvlab.experiments.conversations import ServedTurn, Turn, serve_turns
from kvlab.experiments.machine_load import LoadMeter
from kvlab.experiments.prompts import Prompts
from kvlab.experiments.restart import serve_in_new_process
from kvlab.experiments.spans import find_spans
from kvlab.models import LoadedModel, ModelLike
from kvlab.policies import Policy
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.provenance import provenance
from kvlab.recording.events import Evicted
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, Row, row
from kvlab.results.answers import MAX_TEXT, storable
from kvlab.results.load import OTHER_LOAD
from kvlab.results.rows import TOGETHER, grade_row
from kvlab.results.spans import SPANS, spans_key
from kvlab.systems import Candidate, config_of, policy_of, settings_of
from kvlab.workloads import MetricLike, Workload, WorkloadLike, WorkloadRequest, as_workload
from kvlab.workloads.metrics import checked_grades

REFERENCE = Policy.parse("full")
DISTANCE_REQUESTS = 8
"""The last requests, whose logits are compared in one batch where the model computes in 16 bits."""
DISTANCE_PREFILL_STEP = 512
"""Prompt tokens at a time meanwhile: chunks of other lengths give other last bits."""
UNTIMED = ("ttft_ms", "cached_tokens")
"""Metrics that say nothing about a policy which was given its prompts."""
Key = tuple[str, int]
MakeRow = Callable[..., Row]


@dataclass
class Outcome:
    """The turns that one policy served, by conversation and turn; the first turns after a restart; the events.

    ``other_load`` is the share of the CPU time that other programs took meanwhile; None where it is not known.
    ``was_given`` says that the prompts may have been computed before, for another policy.
    """

    served: dict[Key, ServedTurn]
    restarted: frozenset[Key]
    recorder: Recorder
    other_load: float | None = None
    was_given: bool = False


class Runner:
    """The prompts of one workload under one model, rendered once, for any number of policies."""

    def __init__(
        self,
        workload: WorkloadLike,
        model: ModelLike,
        turns: int | None = None,
        n: int | None = None,
        seed: int = 0,
        concurrency: int = 1,
        progress: bool = True,
        folder: Path | None = None,
        tokens: int | None = None,
        metrics: Sequence[MetricLike] = (),
        shared: SharedPrompts | None = None,
    ) -> None:
        if concurrency < 1:
            raise RunError(f"concurrency is {concurrency}; write 1 or more")
        self.model = model if isinstance(model, LoadedModel) else models.load(model)
        options: dict[str, Any] = {"turns": turns, "n": n, "seed": seed, "tokens": tokens}
        self.workload = as_workload(workload, metrics, count=self._count, **options)
        self.requests = _by_key(self.workload)
        _check_grades(self.requests.values())
        self.prompts = Prompts(self.model, list(self.requests.values()))
        self.turns = [self.prompts.turn(request) for request in self.requests.values()]
        self.n = min(concurrency, len({turn.conversation for turn in self.turns}))
        self.seed, self.progress, self.folder = seed, progress, folder
        self.shared = shared

    def serve(self, candidate: Candidate, *, restart: bool = False) -> Outcome:
        """Serve every turn, from a cold store in a folder of its own unless the policy names one.

        With ``restart`` a new process serves the second half of every conversation, whatever the candidate keeps; the
        reference alone stays in one process, since it has nothing to lose.
        """
        policy, config, name = policy_of(candidate, self.model), config_of(candidate), str(candidate)
        recorder = Recorder(self.provenance())
        tags = {"policy": name, "workload": self.workload.name}
        first, second = self._halves() if restart and candidate != REFERENCE else (self.turns, [])
        with (
            tempfile.TemporaryDirectory(prefix="kvlab-store-", dir=self.folder) as store,
            tqdm(total=len(self.turns), desc=name, unit="turn", disable=not self.progress, leave=True) as bar,
        ):
            there, prompts = with_ssd_folder(policy, Path(store)), None
            if self.shared is not None:
                there, prompts = self.shared.given(there, self.model)
            load = LoadMeter()

            def done(served: ServedTurn) -> None:
                cached = f"ttft {served.ttft_ms:.0f} ms, cached {served.cached_tokens}/{served.prompt_tokens}"
                bar.set_postfix_str("refused" if served.refused else cached, refresh=False)
                bar.update()

            served = serve_turns(
                self.model,
                there,
                first,
                concurrency=self.n,
                store=prompts,
                recorder=recorder,
                tags={**tags, "process": 0},
                config=config,
                done=done,
            )
            if second:
                after = serve_in_new_process(
                    self.model,
                    there,
                    second,
                    concurrency=self.n,
                    recorder=recorder,
                    tags={**tags, "process": 1},
                    config=config,
                    done=done,
                )
                written = max(one.store.get("bytes_written", 0) for one in served)
                served += [_also_written(one, written) for one in after]
            others = load.others()
        if any(type(event) is Evicted for event in recorder.events):
            recorder.provenance[SPANS] = self._spans
        split = min((turn.turn for turn in second), default=None)
        restarted = frozenset((turn.conversation, turn.turn) for turn in second if turn.turn == split)
        turns = {(one.conversation, one.turn): one for one in served}
        return Outcome(turns, restarted, recorder, others, was_given=prompts is not None)

    @cached_property
    def _spans(self) -> dict[str, Any]:
        """The question and the needles of every prompt, as token positions ready for JSON."""
        found = {}
        for turn in self.turns:
            asked = self.requests[turn.conversation, turn.turn]
            spans = find_spans(self.model, turn.prompt, asked.question, asked.wanted)
            found[spans_key(turn.conversation, turn.turn)] = spans.to_json()
        return found

    def results(
        self, policy: Candidate, outcome: Outcome, uncached: Outcome | None = None, *, repeat: int = 0
    ) -> Results:
        """Return tidy rows; `exact` and the `ratio` of a restart to the cold prompt need the uncached run.

        Where the candidate has a context limit, each turn says whether it was `refused`, how many tokens of its prompt
        were cut, and how many its answer discarded. A refused turn has the grades of an empty answer, and no times.
        """
        rows: list[Row] = []
        config = config_of(policy)
        is_limited = config is not None and config.context is not None
        for key, served in outcome.served.items():
            warm = served.cached_tokens and not outcome.was_given
            phase = "restart" if key in outcome.restarted else "warm" if warm else "cold"
            asked, text = self.requests[key], self.prompts.answer(served.tokens)
            values = _values(served, was_given=outcome.was_given, is_limited=is_limited)
            if uncached is not None and policy_of(policy).lossless and served.is_whole:
                values["exact"] = float(served.tokens == uncached.served[key].tokens)
            where: dict[str, Any] = {"phase": phase, "repeat": repeat}
            rows += [self._row(policy, key, metric, value, **where) for metric, value in values.items()]
            grades = _grades(asked, text)
            rows += [self._row(policy, key, name, grade, make=grade_row, **where) for name, grade in grades.items()]
            said: dict[str, Any] = {"text": storable(text), "question": storable(asked.question, MAX_TEXT)}
            said |= {"wanted": storable(asked.wanted, MAX_TEXT)} if asked.wanted else {}
            rows.append(self._row(policy, key, "text", len(served.tokens), **where, **said))
            if uncached is not None and key in outcome.restarted and not served.refused:
                cold = uncached.served[key].ttft_ms
                names: dict[str, Any] = {"of": f"{policy} ttft_ms restart", "to": f"{REFERENCE} ttft_ms cold"}
                rows.append(self._row(policy, key, "ratio", served.ttft_ms / cold, **where, **names))
        load = {} if outcome.other_load is None else {OTHER_LOAD: {str(policy): [outcome.other_load]}}
        facts = self.provenance() | load | settings_of(policy, self.model)
        return Results(rows, facts, {str(policy): outcome.recorder})

    def cold_ttft(self, uncached: Outcome, keys: Iterable[Key], *, repeat: int = 0) -> Results:
        """Return the uncached TTFT of some prompts alone, as rows of `full`."""
        rows = [
            self._row(REFERENCE, key, "ttft_ms", uncached.served[key].ttft_ms, "cold", repeat=repeat)
            for key in sorted(keys)
        ]
        return Results(rows, self.provenance())

    def logit_distances(self, policies: Sequence[Candidate]) -> Results:
        """Measure how far logits lie from each request alone, where 16 bits let no batch be exact; else no rows.

        Rows of `logit_distance`, each with `logit_distance_mlx_lm`, that of mlx-lm's own batch of the same requests,
        and with `logit_bound`, how far the policy's may lie: a fifth more and what so few requests leave uncertain.
        """
        rows: list[Row] = []
        if policies and logit_distance.needs_bound(self.model):
            prompts = [turn.prompt for turn in self.turns[-DISTANCE_REQUESTS:]]
            with tqdm(total=len(policies) + 2, desc="logits in 16 bits", disable=not self.progress) as bar:
                alone = logit_distance.alone(self.model, prompts, DISTANCE_PREFILL_STEP)
                bar.update()
                batch = logit_distance.in_mlx_lm_batch(self.model, prompts, alone, DISTANCE_PREFILL_STEP)
                own = logit_distance.distances(batch, alone)
                bar.update()
                for policy in policies:
                    with tempfile.TemporaryDirectory(prefix="kvlab-store-", dir=self.folder) as store:
                        there = with_ssd_folder(policy_of(policy, self.model), Path(store))
                        logits = logit_distance.under(self.model, there, prompts, alone, DISTANCE_PREFILL_STEP)
                    bar.update()
                    seen = logit_distance.distances(logits, alone)
                    values = {
                        "logit_distance": seen.mean,
                        "logit_distance_mlx_lm": own.mean,
                        "logit_bound": logit_distance.bound(own, seen),
                    }
                    rows += [self._together(policy, metric, value) for metric, value in values.items()]
        return Results(rows, self.provenance())

    def _together(self, policy: Candidate, metric: str, value: float) -> Row:
        where = {"n": self.n, "model": self.model.name, "seed": self.seed, "kind": TOGETHER}
        return row(str(policy), self.workload.name, metric, value, **where)

    def provenance(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"model_argument": self.model.argument} if self.model.argument else {}
        facts |= {"adapter_argument": str(self.model.adapter)} if self.model.adapter else {}
        names = dict.fromkeys(metric.name for request in self.requests.values() for metric in request.metrics)
        facts |= {"metrics": list(names)} if names else {}
        facts |= self.prompts.facts
        facts |= {"prompts": "computed once for all policies that begin with them"} if self.shared else {}
        return provenance(self.model, seed=self.seed, workload=self.workload.name, concurrency=self.n, **facts)

    def _row(
        self, policy: Candidate, key: Key, metric: str, value: float, phase: str, make: MakeRow = row, **more: Any
    ) -> Row:
        conversation, turn = key
        return make(
            str(policy),
            self.workload.name,
            metric,
            value,
            turn=turn,
            phase=phase,
            n=self.n,
            budget=getattr(policy_of(policy).retention, "budget", None),
            model=self.model.name,
            seed=self.seed,
            conversation=conversation,
            kind=self.requests[key].kind,
            **more,
        )

    def _halves(self) -> tuple[list[Turn], list[Turn]]:
        """Return the turns before and after the restart, which comes after half of the longest conversation."""
        half = max(turn.turn for turn in self.turns) // 2
        if half < 1:
            raise RunError("a restart needs conversations of two turns or more; write turns=2 or more")
        return [turn for turn in self.turns if turn.turn <= half], [turn for turn in self.turns if turn.turn > half]

    def _count(self, text: str) -> int:
        return len(self.model.encode(text))


def _by_key(workload: Workload) -> dict[Key, WorkloadRequest]:
    """Return the requests of a workload by conversation and turn. Raises RunError where two have one, or none is."""
    requests: dict[Key, WorkloadRequest] = {}
    for request in workload.requests():
        key = (request.conversation, request.turn)
        if key in requests:
            raise RunError(
                f"workload {workload.name} has two requests for turn {key[1]} of conversation {key[0]!r}; "
                "give every conversation a name of its own, and number its turns"
            )
        requests[key] = request
    if not requests:
        raise RunError(f"workload {workload.name} has no requests")
    return requests


def _check_grades(requests: Iterable[WorkloadRequest]) -> None:
    """Raise KvlabError where the grades that metrics give to a right answer cannot be rows."""
    graded = next((one for one in requests if one.metrics and one.reference is not None), None)
    for name, grade in (_grades(graded, graded.wanted) if graded else {}).items():
        grade_row("", "", name, grade)


def _also_written(served: ServedTurn, before: int) -> ServedTurn:
    """Add the bytes that the process before the restart wrote: the rows count those of the run."""
    if "bytes_written" not in served.store:
        return served
    return replace(served, store={**served.store, "bytes_written": served.store["bytes_written"] + before})


def _values(served: ServedTurn, *, was_given: bool, is_limited: bool) -> dict[str, float]:
    """Return the measured values by metric; where the prompt was given, without what that changes.

    ``is_limited`` says that the candidate has a context limit.
    """
    limit: dict[str, float] = {"refused": float(served.refused)} if is_limited else {}
    if served.refused:
        return limit | {"prompt_tokens": served.prompt_tokens} | dict(served.store)
    limit |= {"cut_tokens": served.cut_tokens, "discarded_tokens": served.discarded_tokens} if is_limited else {}
    values: dict[str, float] = limit | {
        "ttft_ms": served.ttft_ms,
        "prompt_tokens": served.prompt_tokens,
        "cached_tokens": served.cached_tokens,
        "kv_bytes_live": served.kv_bytes_live,
    }
    if served.itl_ms and served.tpot_ms:
        values["tpot_ms"] = served.tpot_ms
        values["itl_p99_ms"] = float(np.percentile(served.itl_ms, 99))
        values["tokens_per_s"] = 1000 / served.tpot_ms
    if was_given:
        return {metric: value for metric, value in values.items() if metric not in UNTIMED}
    return values | dict(served.store)


def _grades(request: WorkloadRequest, text: str) -> dict[str, float]:
    """Return all grades of an answer. Raises UserCodeError where a workload of one's own gives what is no grade."""
    return checked_grades(
        request.grade(text), type(request).__name__, f"for turn {request.turn} of {request.conversation}"
    )
