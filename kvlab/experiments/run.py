"""Experiments: a policy on a workload (`Run`), and several policies on the same prompts (`compare`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path

from kvlab.counts import counted
from kvlab.decoder.shared_prompts import SharedPrompts, opened
from kvlab.errors import RunError
from kvlab.experiments.runner import REFERENCE, Key, Outcome, Runner
from kvlab.experiments.teacher_forced import TeacherForcedRunner
from kvlab.models import ModelLike, with_adapter, with_dtype
from kvlab.policies import Module, Policy, parse_bytes
from kvlab.results import Results, make_folder, mark_void, merged, new_run_folder
from kvlab.systems import Candidate, System, parse_candidates, policy_of
from kvlab.workloads import MetricLike, Workload, WorkloadLike, is_teacher_forced
from kvlab.workloads.metrics import as_list, find_metrics

PolicyLike = str | Policy | Module | System


@dataclass(frozen=True)
class Run:
    """One policy or system on one workload: independent of every other run, and picklable while its parts are names.

    Args:
        policy: spec string or Policy, or a System, which brings settings of the decoder with it.
        workload: a Workload, its name (see :func:`kvlab.workloads.workload_names`), or your own data: a .jsonl file, a
            frame, dicts with `question`, `answer` and `context`, or messages (see :class:`kvlab.workloads.Own`).
        model: None (the bundled one), a folder, a hub id, or a LoadedModel.
        turns: requests of each conversation; None is the workload's own number.
        n: conversations; None is one, or all there are of your own data and of a teacher-forced workload.
        seed: of the workload.
        concurrency: conversations that run at once, the `n` of the rows; None is 1, or 8 where answers are forced.
        restart: serve the second half of every conversation in a new process; `full` alone stays in one.
        tokens: length of a prompt, for workloads with that option; None is the workload's own.
        adapter: folder of an adapter to load with the model; None for none.
        metrics: names (see :func:`kvlab.workloads.metric_names`) or functions `(text, wanted)` that return a number
            from 0 to 1, or a dict of several; they grade every answer in place of the workload's own way. The first
            one's grade is the `accuracy` too.
        share_prompts: bytes of RAM, such as "6GB", for the KV of prompts: it is computed once, under `full`, for all
            policies that begin with it. Answers stay the same; there are no rows of TTFT and cached tokens then.
        system: a system by its name, in place of the policy; so that a Run with one can be named, too.
        dtype: float32, float16 or bfloat16, of the model's weights; None: as :func:`kvlab.load` does without.
    """

    policy: PolicyLike
    workload: WorkloadLike = "agent"
    model: ModelLike = None
    turns: int | None = None
    n: int | None = None
    seed: int = 0
    concurrency: int | None = None
    restart: bool = False
    tokens: int | None = None
    adapter: str | Path | None = None
    metrics: tuple[MetricLike, ...] = ()
    share_prompts: str | None = None
    system: str | None = None
    dtype: str | None = None

    @property
    def candidate(self) -> Candidate:
        """What is measured: the system, where one is named, else the policy. Raises KvlabError."""
        return parse_candidates([] if self.system else [self.policy], [self.system] if self.system else [])[0]

    def execute(self, *, repeats: int = 1, progress: bool = True) -> Results:
        """Run it `repeats` times. Raises KvlabError for an impossible policy, workload, model or setting."""
        check_repeats(repeats)
        policy = self.candidate
        with opened(self.share_prompts) as shared:
            if is_teacher_forced(self.workload):
                return self.forced(repeats=repeats, progress=progress, shared=shared).run(policies_only([policy]))
            check_shared_systems(self.share_prompts, [policy])
            harness = self.harness(progress=progress, shared=shared)
            served = (harness.serve(policy, restart=self.restart) for _ in range(repeats))
            results = merged(harness.results(policy, outcome, repeat=repeat) for repeat, outcome in enumerate(served))
        results.rows = mark_void(results.rows)
        return results

    def harness(
        self, *, progress: bool = True, folder: Path | None = None, shared: SharedPrompts | None = None
    ) -> Runner:
        """Make the Runner of its prompts and model, for this policy and any other; SSD tiers lie in `folder`."""
        check_shared(share_prompts=self.share_prompts, restart=self.restart)
        model = with_dtype(with_adapter(self.model, self.adapter), self.dtype)
        concurrency = 1 if self.concurrency is None else self.concurrency
        parts = (self.workload, model, self.turns, self.n, self.seed, concurrency)
        return Runner(*parts, progress, folder, self.tokens, self.metrics, shared)

    def forced(
        self,
        *,
        repeats: int = 1,
        progress: bool = True,
        folder: Path | None = None,
        shared: SharedPrompts | None = None,
    ) -> TeacherForcedRunner:
        """Make the runner of a teacher-forced workload, for this policy and any other.

        Raises RunError for metrics, a restart and repeats, which mean nothing there.
        """
        check_shared(share_prompts=self.share_prompts, restart=self.restart)
        check_forced(metrics=bool(self.metrics), restart=self.restart, repeats=repeats)
        model = with_dtype(with_adapter(self.model, self.adapter), self.dtype)
        parts = (self.workload, model, self.turns, self.n, self.seed, self.concurrency)
        return TeacherForcedRunner(*parts, progress, folder, self.tokens, shared)

    def _repr_html_(self) -> str:
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        values["model"] = getattr(self.model, "name", None) or self.model or "the bundled one"
        if not isinstance(self.workload, str | Path):
            values["workload"] = self.workload.name if isinstance(self.workload, Workload) else "your own"
        values["metrics"] = ", ".join(metric.name for metric in find_metrics(self.metrics)) or None
        cells = "".join(
            f"<tr><td><b>{name}</b></td><td style='text-align:left'><code>{escape(str(value))}</code></td></tr>"
            for name, value in values.items()
            if value is not None
        )
        return f"<table>{cells}</table>"


def run(
    policy: PolicyLike,
    workload: WorkloadLike = "agent",
    model: ModelLike = None,
    *,
    metric: MetricLike | None = None,
    metrics: Sequence[MetricLike] = (),
    turns: int | None = None,
    n: int | None = None,
    seed: int = 0,
    concurrency: int | None = None,
    restart: bool = False,
    tokens: int | None = None,
    adapter: str | Path | None = None,
    share_prompts: str | None = None,
    repeats: int = 1,
    progress: bool = True,
) -> Results:
    """Run a policy on a workload: `Run(policy, workload, model, ...).execute(repeats=repeats)`.

    `metric` names one metric, `metrics` several; see `Run`.
    """
    named = _named(metric, metrics)
    one = Run(policy, workload, model, turns, n, seed, concurrency, restart, tokens, adapter, named, share_prompts)
    return one.execute(repeats=repeats, progress=progress)


def compare(
    policies: Sequence[PolicyLike],
    workload: WorkloadLike = "agent",
    model: ModelLike = None,
    *,
    metric: MetricLike | None = None,
    metrics: Sequence[MetricLike] = (),
    turns: int | None = None,
    n: int | None = None,
    seed: int = 0,
    concurrency: int | None = None,
    restart: bool = False,
    tokens: int | None = None,
    adapter: str | Path | None = None,
    share_prompts: str | None = None,
    repeats: int = 1,
    folder: Path | None = None,
    progress: bool = True,
) -> Results:
    """Run every policy on the same prompts, one after another, and the uncached run that decides what is exact.

    The uncached run (`full`) always takes place; it has rows only where `full` is among the policies, or after a
    restart, where its TTFT is the cold one for the same prompt. With `repeats`, all policies run once, then all again,
    so that a drift over time affects them alike: rows carry their `repeat`, tables show medians and ranges, and events
    are kept of the first. A teacher-forced workload has its references led through every policy instead, and rows of
    their distances from `full`. Other options are those of `Run`; `metric` is one of `metrics`; `folder` holds the SSD
    tiers while the runs last (else a temporary one).
    """
    if not policies:
        raise RunError("no policies to compare; write some, such as full,paged,tiered")
    check_repeats(repeats)
    asked = parse_candidates(policies)
    check_shared_systems(share_prompts, asked)
    named = _named(metric, metrics)
    one = Run(REFERENCE, workload, model, turns, n, seed, concurrency, restart, tokens, adapter, named, share_prompts)
    if folder is not None:
        make_folder(folder)
    with opened(share_prompts) as shared:
        if is_teacher_forced(workload):
            runner = one.forced(repeats=repeats, progress=progress, folder=folder, shared=shared)
            return runner.run(policies_only(asked))
        harness = one.harness(progress=progress, folder=folder, shared=shared)
        timed = REFERENCE in asked or restart
        parts: list[Results] = []
        for repeat in range(repeats):
            if repeat == 0 or timed:  # its tokens are the same each time, its times are not
                uncached = harness.serve(REFERENCE)
            parts += _round(harness, asked, uncached, restart, repeat)
    parts.append(harness.logit_distances([policy for policy in asked if policy_of(policy).lossless]))
    results = merged(parts)
    results.rows = mark_void(results.rows, reference=harness.results(REFERENCE, uncached).rows)
    return results


def _named(metric: MetricLike | None, metrics: Sequence[MetricLike]) -> tuple[MetricLike, ...]:
    """Return all metrics asked for, the first one first; a list for `metric` and one alone for `metrics` do too."""
    return tuple(one for given in (metric, metrics) if given is not None for one in as_list(given))


def _round(
    harness: Runner, policies: Sequence[Candidate], uncached: Outcome, restart: bool, repeat: int
) -> Iterator[Results]:
    """Run every policy once."""
    restarted: set[Key] = set()
    for policy in policies:
        outcome = uncached if policy == REFERENCE else harness.serve(policy, restart=restart)
        yield harness.results(policy, outcome, uncached, repeat=repeat)
        restarted |= outcome.restarted
    if restarted and REFERENCE not in policies:
        yield harness.cold_ttft(uncached, restarted, repeat=repeat)


def check_repeats(repeats: int) -> None:
    """Raise RunError unless it is a count of measurements."""
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise RunError(f"repeats is {repeats!r}; write a whole number, 1 or more")


def check_shared(*, share_prompts: str | None, restart: bool) -> None:
    """Raise KvlabError for a size that is none, or where sharing would falsify what is measured."""
    if share_prompts is None:
        return
    if not isinstance(share_prompts, str):
        raise RunError(f"share_prompts is {share_prompts!r}; write bytes of RAM in quotes, such as '6GB'")
    parse_bytes(share_prompts)
    if restart:
        raise RunError("a restart is about times, which shared prompts leave out; leave restart or share_prompts out")


def check_shared_systems(share_prompts: str | None, candidates: Sequence[Candidate]) -> None:
    """Raise RunError where prompts would be computed once for systems, whose prefill is part of what they are."""
    systems = [str(one) for one in candidates if isinstance(one, System)]
    if share_prompts is not None and systems:
        raise RunError(
            f"share_prompts computes each prompt once for all, and when and in which chunks {systems[0]} computes it "
            "is part of that system: leave share_prompts out, or the systems"
        )


def policies_only(candidates: Sequence[Candidate]) -> list[Policy]:
    """Return candidates as policies. Raises RunError for a system: forced answers run through no request loop."""
    for one in candidates:
        if isinstance(one, System):
            raise RunError(
                f"forced answers pass no request loop, and show what retention and codec alone do: in place of {one} "
                f"write its policy, '{one.policy}'"
            )
    return [policy_of(one) for one in candidates]


def check_forced(*, metrics: bool, restart: bool, repeats: int) -> None:
    """Raise RunError for options that mean nothing where answers are forced."""
    if metrics:
        raise RunError("a metric grades answers, and forced ones have no grade; leave metrics out")
    if restart:
        raise RunError("a restart changes nothing where answers are forced; leave restart out")
    if repeats > 1:
        raise RunError("forced answers are as far off at every repeat; leave repeats out, and take a larger n")


def compare_command(
    policies: Sequence[PolicyLike],
    workload: str,
    *,
    metrics: Sequence[str] = (),
    model: ModelLike = None,
    turns: int | None = None,
    n: int | None = None,
    seed: int = 0,
    concurrency: int | None = None,
    tokens: int | None = None,
    adapter: str | None = None,
    share_prompts: str | None = None,
    repeats: int = 1,
    out: Path | None = None,
    command: str | None = None,
) -> Results:
    """Run `kvlab compare`: print the verdict and the table, write the run and its report to `out`.

    The `n` conversations run all at once, or `concurrency` of them at a time. `command` is the command line, for the
    provenance.
    """
    from kvlab.results.report import write_run  # draws in Altair, which takes a moment to import

    folder = new_run_folder(out, "compare")
    forced = is_teacher_forced(workload)
    results = compare(
        policies,
        workload,
        model,
        metrics=metrics,
        turns=turns,
        n=n,
        seed=seed,
        concurrency=concurrency if forced else concurrency or n or 1,
        tokens=tokens,
        adapter=adapter,
        share_prompts=share_prompts,
        repeats=repeats,
        folder=folder,
    )
    results.provenance |= {"command": command} if command else {}
    at_once = results.rows[0]["n"]
    lead = f"Every policy sees the same prompts; {counted(at_once, 'conversation')} at a time."
    what = "Charts" if results.answers().is_empty() else "Charts and answers"
    if forced:
        lead = "The same answers were led through every policy, token by token; KL and flips are distances from full."
    report = write_run(results, folder, title=f"kvlab compare: {workload}", lead=lead)
    print(f"\n{results.table()}\n\n{results.verdict().text()}\n\n{what}: {report}")
    return results
