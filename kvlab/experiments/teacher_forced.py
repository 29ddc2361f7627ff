"""Teacher-forced workloads: the same answers led through every policy, and their distances from ``full``, as rows."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.decoder.shared_prompts import SharedPrompts
from kvlab.decoder.teacher_forcing import Distributions, Divergence, distributions, divergences
from kvlab.errors import RunError
from kvlab.experiments.forced_answers import ForcedItem, forced_items
from kvlab.experiments.greedy_calls import GreedyAnswer, answer_calls, same_answer
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel, ModelLike
from kvlab.policies import Policy
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.provenance import provenance
from kvlab.results import Results, Row, merged, row
from kvlab.results.answers import MAX_TEXT, storable
from kvlab.results.rows import TOGETHER
from kvlab.workloads import Workload, load_workload
from kvlab.workloads.call_spans import TOKEN_KINDS

REFERENCE = Policy.parse("full")
ANSWERS_AT_ONCE = 8
"""Answers that are led side by side where nothing else is said."""
MAX_DISTRIBUTION_BYTES = 1 << 29
"""Bytes of the distributions under ``full`` that are held at a time: a row of the vocabulary for every token."""
CUT = " […]"
"""Ends the text of an answer that was ended early, as it was no longer that of ``full``."""


@dataclass(frozen=True)
class Measured:
    """What one policy gave at one item: its divergence, and what it wrote by itself (None: not asked)."""

    item: ForcedItem
    divergence: Divergence
    answer: GreedyAnswer | None = None
    same: bool | None = None


class TeacherForcedRunner:
    """The answers of one workload under one model, rendered once, for any number of policies."""

    def __init__(
        self,
        workload: str | Workload,
        model: ModelLike,
        turns: int | None = None,
        n: int | None = None,
        seed: int = 0,
        concurrency: int | None = None,
        progress: bool = True,
        folder: Path | None = None,
        tokens: int | None = None,
        shared: SharedPrompts | None = None,
    ) -> None:
        if concurrency is not None and concurrency < 1:
            raise RunError(f"concurrency is {concurrency}; write 1 or more")
        self.model = model if isinstance(model, LoadedModel) else models.load(model)
        self.workload = (
            load_workload(workload, turns=turns, n=n, seed=seed, tokens=tokens)
            if isinstance(workload, str)
            else workload
        )
        requests = self.workload.requests()
        self.prompts = Prompts(self.model, requests)
        self.items = forced_items(requests, self.prompts)
        if not self.items:
            raise RunError(f"workload {self.workload.name} has no requests")
        self.calls_apart = bool(getattr(self.workload, "calls_apart", False))
        self.n = min(concurrency or ANSWERS_AT_ONCE, len(self.items))
        self.seed, self.progress, self.folder = seed, progress, folder
        self.shared = shared

    def run(self, policies: Sequence[Policy]) -> Results:
        """Measure all policies item by item; ``full`` is computed once for all, and has rows where it is asked for."""
        measured: dict[Policy, list[Measured]] = {policy: [] for policy in policies}
        others = [policy for policy in measured if policy != REFERENCE]
        total = len(self.items) * (1 + len(others))
        with (
            contextlib.ExitStack() as stack,
            tqdm(total=total, desc=self.workload.name, unit="answer", disable=not self.progress) as bar,
        ):
            uncached = self._decoder(stack, REFERENCE)
            decoders = {policy: self._decoder(stack, policy) for policy in others}
            for group in self._groups():
                bar.set_postfix_str(str(REFERENCE), refresh=False)
                forced = [item.forced for item in group]
                own = distributions(uncached, forced)
                answers = self._answers(uncached, group)
                bar.update(len(group))
                if REFERENCE in measured:
                    measured[REFERENCE] += self._uncached(group, own, answers)
                for policy, decoder in decoders.items():
                    bar.set_postfix_str(str(policy), refresh=False)
                    found = divergences(decoder, forced, own)
                    written = self._answers(decoder, group, answers)
                    measured[policy] += [
                        Measured(item, one, answer, same_answer(answer, other) if answer is not None else None)
                        for item, one, answer, other in zip(group, found, written, answers, strict=True)
                    ]
                    bar.update(len(group))
        facts, place = self.provenance(), {id(item): at for at, item in enumerate(self.items)}
        for some in measured.values():
            some.sort(key=lambda one: place[id(one.item)])
        return merged([Results(list(self._rows(policy, some)), facts) for policy, some in measured.items()])

    def provenance(self) -> dict[str, Any]:
        facts = {"model_argument": self.model.argument} if self.model.argument else {}
        facts |= {"adapter_argument": str(self.model.adapter)} if self.model.adapter else {}
        facts |= self.prompts.facts
        facts |= {"prompts": "computed once for all policies that begin with them"} if self.shared else {}
        return provenance(self.model, seed=self.seed, workload=self.workload.name, concurrency=self.n, **facts)

    def _decoder(self, stack: contextlib.ExitStack, policy: Policy) -> Decoder:
        """Open a decoder until the stack ends; the files of its tiers lie in a folder of their own."""
        store = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvlab-store-", dir=self.folder))
        there, prompts = with_ssd_folder(policy, Path(store)), None
        if self.shared is not None:
            there, prompts = self.shared.given(there, self.model)
        return stack.enter_context(Decoder(self.model, there, store=prompts, max_concurrency=self.n))

    def _groups(self) -> Iterator[list[ForcedItem]]:
        """Cut the items into groups that run side by side, of answers about as long, and whose distributions fit."""
        most = max(1, MAX_DISTRIBUTION_BYTES // (4 * self.model.vocab_size))
        group: list[ForcedItem] = []
        for item in sorted(self.items, key=lambda one: len(one.forced.answer)):
            tokens = sum(len(one.forced.answer) for one in [*group, item])
            if group and (len(group) == self.n or tokens > most):
                yield group
                group = []
            group.append(item)
        yield group

    def _answers(
        self, decoder: Decoder, group: list[ForcedItem], others: list[GreedyAnswer | None] | None = None
    ) -> list[GreedyAnswer | None]:
        """Return what the model answers by itself where a call is wanted, else None."""
        return answer_calls(decoder, group, self.prompts, others) if self.calls_apart else [None] * len(group)

    def _uncached(
        self, group: list[ForcedItem], own: list[Distributions], answers: list[GreedyAnswer | None]
    ) -> Iterator[Measured]:
        for item, one, answer in zip(group, own, answers, strict=True):
            same = None if answer is None else True
            yield Measured(item, one.divergence_from_itself(item.forced.answer), answer, same)

    # -- rows -------------------------------------------------------------------------------------------------------

    def _rows(self, policy: Policy, measured: Sequence[Measured]) -> Iterator[Row]:
        where = {
            "n": self.n,
            "budget": getattr(policy.retention, "budget", None),
            "model": self.model.name,
            "seed": self.seed,
        }

        def new(metric: str, value: float, **more: Any) -> Row:
            return row(str(policy), self.workload.name, metric, value, **where, **more)

        for one in measured:
            request, completion = one.item.request, one.divergence.completion
            place = {"turn": request.turn, "conversation": request.conversation}
            yield new("prompt_tokens", completion.prompt_tokens, kind=request.kind, **place)
            yield new("kv_bytes_live", completion.kv_bytes_live, kind=request.kind, **place)
            for kind, chosen in self._parts(one.item):
                for metric, value in _averages(one.divergence, chosen, self.calls_apart).items():
                    yield new(metric, value, kind=kind, **place)
            if one.same is not None:
                yield new("equal_call", float(one.same), kind=request.kind, **place)
            if one.answer is not None:
                said = {"text": storable(f"{one.answer.text}{CUT * one.answer.cut}")}
                said |= {"question": storable(request.question, MAX_TEXT)}
                said |= {"wanted": storable(request.wanted, MAX_TEXT)} if request.wanted else {}
                yield new("text", len(one.answer.tokens), kind=request.kind, **place, **said)
        if not self.calls_apart:
            yield from _by_position(measured, new)

    def _parts(self, item: ForcedItem) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the kinds of tokens that are reported apart, with the tokens of each, bool ``[tokens]``."""
        if not self.calls_apart:
            yield item.request.kind, np.ones(len(item.kinds), dtype=bool)
            return
        kinds = np.array(item.kinds)
        for kind in TOKEN_KINDS:
            if (kinds == kind).any():
                yield kind, kinds == kind


def _averages(one: Divergence, chosen: np.ndarray, calls_apart: bool) -> dict[str, float]:
    """Return the metrics of some tokens of an answer."""
    agrees = float(one.agrees[chosen].mean())
    best = {"tool_flip": 1.0 - agrees} if calls_apart else {"top1": agrees}
    return {"kl": float(one.kl[chosen].mean()), **best, "perplexity": _perplexity(one.log_prob[chosen])}


def _perplexity(log_prob: np.ndarray) -> float:
    return float(np.exp(np.minimum(-log_prob.mean(), 80.0)))  # a token that is next to impossible is still finite


def _by_position(measured: Sequence[Measured], new: Callable[..., Row]) -> Iterator[Row]:
    """Yield rows over all items together, by the place in the answer: 1, 2 and 3, 4 to 7, and so on."""
    longest = max(len(one.divergence.kl) for one in measured)
    first = 1
    while first <= longest:
        places = slice(first - 1, 2 * first - 1)
        parts = [one.divergence for one in measured if len(one.divergence.kl) >= first]
        kl, agrees, log_prob = (
            np.concatenate([getattr(part, name)[places] for part in parts]) for name in ("kl", "agrees", "log_prob")
        )
        for metric, value in (("kl", kl.mean()), ("top1", agrees.mean()), ("perplexity", _perplexity(log_prob))):
            yield new(metric, float(value), kind=TOGETHER, position=first)
        first *= 2
