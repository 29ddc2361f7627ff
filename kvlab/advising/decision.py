"""``advise``: which cache design and which settings fit a workload, by replaying it through each design's own plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kvlab.advising.advice import Advice
from kvlab.advising.agents import AgentWorkload
from kvlab.advising.changes import Conditions, changed, design_key, representatives
from kvlab.advising.description import Description
from kvlab.advising.designs import LOSSY_CODECS, Need, designs
from kvlab.advising.errors import AdviceError
from kvlab.advising.judging import Ranking, rank
from kvlab.advising.kv_bytes import attention_share, token_bytes_of
from kvlab.advising.measuring import measured_speed
from kvlab.advising.quality import DEFAULT_PROMISE, certified_codecs
from kvlab.advising.speed import card_speed, given_speed
from kvlab.advising.transcripts import transcript_workload
from kvlab.models import LoadedModel, ModelLike, load
from kvlab.policies import Policy, parse_bytes
from kvlab.results import Results
from kvlab.speed import Speed

LARGEST_VOCABULARY = 2048
"""Token ids that texts of a description are drawn from."""


def advise(
    workload: Any = None,
    *,
    model: ModelLike | LoadedModel = None,
    memory: str | int = "4GB",
    ssd: str | int = "20GB",
    prefill: float | None = None,
    decode: float | None = None,
    ssd_speed: str | int | None = None,
    measure: bool = False,
    card: str | Path | None = None,
    speed: Speed | None = None,
    kv_bytes: int | None = None,
    lossy: bool = False,
    quality: Results | str | Path | None = None,
    promise: str = DEFAULT_PROMISE,
    n: int | None = None,
    restarts: int | None = None,
    what_if: bool = True,
    seed: int = 0,
    **described: Any,
) -> Advice:
    """Say which design and settings fit a workload, and why.

    Every design is replayed on the workload's token ids: which tokens each request finds is computed by the design's
    own plan and kvlab's own store. Waits follow from the speeds by a simulation of the request loop; no request is run.

    Args:
        workload: a transcript's path, or any workload that :func:`kvlab.compare` takes; None: the one that
            ``described`` says, fields of :class:`kvlab.advising.Description` such as ``agents=8, turns=15``.
        model: gives the chat template, and the bytes of KV a token; None is the bundled one.
        memory: for KV, live and at rest, without the weights; such as ``"8GB"``.
        ssd: for KV at rest; ``"0"`` is none.
        prefill: prompt tokens a second of a short prompt; with ``decode``, tokens a second of one answer.
        ssd_speed: bytes a second read from SSD, such as ``"3GB"``; else 2 GB.
        measure: measure the speeds here, which takes a few seconds with a small model.
        card: a file of ``kvlab audit --json``, whose curve of cold prompts gives the speed of prefill.
        speed: all speeds in one value, in place of these.
        kv_bytes: bytes of KV a token of another model than ``model``.
        lossy: also designs whose answers may differ from those without a cache.
        quality: a run of :func:`kvlab.compare`, or its folder, that measured codecs: those that hold ``promise`` are
            allowed, as with ``lossy``, and no others.
        promise: what ``kvlab compare --certify`` takes, such as ``"equal_call:1%@95%"``.
        n: conversations of a transcript that go on at once; None is one.
        restarts: of the server, evenly spread.
        what_if: also say what would change the choice, which takes as long again.

    Raises:
        AdviceError: a speed is missing, a number cannot be used, or nothing fits. WorkloadError, ModelError.
    """
    measured = None if quality is None else certified_codecs(quality, promise)
    codecs, lossy = (measured.codecs, True) if measured is not None else (LOSSY_CODECS, lossy)
    loaded = model if isinstance(model, LoadedModel) else load(model)
    room, disk = parse_bytes(memory), parse_bytes(ssd)
    description = None if workload is not None else _described(described, restarts)
    if workload is not None:
        asked = {name: described.pop(name) for name in ("turns", "pause_s") if name in described}
        if described:
            raise AdviceError(f"{next(iter(described))} describes a workload, and one is given: leave one of them out")
        own = transcript_workload(workload, loaded, n=n, restarts=restarts or 0, **asked)
    else:
        own = _of(description or Description(), loaded, seed)
    token_bytes = token_bytes_of(loaded, kv_bytes)
    raw = token_bytes(Policy.parse("full"))
    disk_speed = None if ssd_speed is None else float(parse_bytes(ssd_speed))
    if speed is not None and not speed.step_s:
        raise AdviceError("this speed says nothing of answers: give it step_s, the seconds of a decode step")
    chosen_speed = speed or _speed(loaded, own, raw, prefill, decode, disk_speed, measure=measure, card=card)

    def decide(conditions: Conditions, only: set[str] | None = None) -> Ranking:
        need = Need(conditions.workload.agents, conditions.workload.longest, conditions.memory, conditions.ssd)
        chosen = designs(need, token_bytes, lossy=conditions.lossy, codecs=codecs)
        if only is not None:
            chosen = [one for one in chosen if design_key(one) in only or one.is_lossy]
        return rank(conditions.workload, chosen, need, chosen_speed, token_bytes)

    def make(agents: int | None, again: int) -> AgentWorkload:
        if description is None:
            return dataclasses.replace(own, restarts=again)
        return _of(dataclasses.replace(description, agents=agents or description.agents, restarts=again), loaded, seed)

    conditions = Conditions(make, own, room, disk, lossy)
    ranking = decide(conditions)
    if ranking.choice is None:
        why = "; ".join(f"{one.name} {one.why_not}" for one in ranking.judged[:3])
        raise AdviceError(f"no design fits: {why}: write more --memory or --ssd")
    few = representatives(ranking, [one.design for one in ranking.judged])
    changes = (
        changed(
            conditions,
            ranking.choice.design.kind,
            lambda one: decide(one, few),
            can_add_agents=description is not None,
        )
        if what_if
        else []
    )
    return Advice(
        own.text,
        ranking,
        tuple(changes),
        chosen_speed,
        room,
        disk,
        loaded.argument,
        measured.promise if measured else "",
    )


def _described(values: dict[str, Any], restarts: int | None) -> Description:
    known = [field.name for field in dataclasses.fields(Description)]
    for name in values:
        if name not in known:
            raise AdviceError(f"{name} is unknown: describe a workload with {', '.join(known)}")
    return Description(**values, **({} if restarts is None else {"restarts": restarts}))


def _of(description: Description, model: LoadedModel, seed: int) -> AgentWorkload:
    vocabulary = min(model.vocab_size, LARGEST_VOCABULARY)
    return description.workload(vocabulary=vocabulary, avoid=model.eos, seed=seed)


def _speed(
    model: LoadedModel,
    workload: AgentWorkload,
    token_bytes: int,
    prefill: float | None,
    decode: float | None,
    ssd: float | None,
    *,
    measure: bool,
    card: str | Path | None,
) -> Speed:
    """Return the speed that is given, of a card, or measured. Raises AdviceError where there is none, or two."""
    if sum((measure, card is not None, prefill is not None)) > 1:
        raise AdviceError("prefill, card and measure exclude each other: keep one")
    if measure:
        return measured_speed(model, workload.longest, token_bytes, ssd=ssd)
    if card is not None:
        return card_speed(Path(card), decode, ssd=ssd)
    if prefill is None or decode is None:
        raise AdviceError(
            "how quick is the machine? write --measure, or --prefill 500 --decode 20 (tokens a second), or --card FILE"
        )
    return given_speed(prefill, decode, ssd=ssd, attention=attention_share(model))
