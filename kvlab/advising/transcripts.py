"""Conversations of one's own as token ids under a model's chat template: each conversation is an agent."""

from __future__ import annotations

from pathlib import Path

from kvlab.advising.agents import AgentRequest, AgentWorkload
from kvlab.advising.errors import AdviceError
from kvlab.counts import counted
from kvlab.decoder.prefill.user_opening import user_opening
from kvlab.decoder.reuse.paged_rules import opening_of_answers
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.workloads import WorkloadRequest
from kvlab.workloads.base import text_of
from kvlab.workloads.registry import WorkloadLike, as_workload

ANSWER_TOKENS = 64
"""Of an answer that the transcript does not have."""


def transcript_workload(
    given: WorkloadLike,
    model: LoadedModel,
    *,
    n: int | None = None,
    turns: int | None = None,
    restarts: int = 0,
    pause_s: float = 0.0,
) -> AgentWorkload:
    """Read a transcript, or another workload that :func:`kvlab.compare` takes, as requests of agents at once.

    ``n`` conversations of ``turns`` requests; None is all there are, and one of a transcript. The history of a request
    holds the answers of the transcript. Raises WorkloadError.
    """
    spec = f"transcript:{given}" if isinstance(given, Path) else given
    requests = as_workload(spec, n=n, turns=turns, count=lambda text: len(model.encode(text))).requests()
    if not requests:
        raise AdviceError(f"{given} has no conversation with an answer: give one or more")
    prompts = Prompts(model, requests)
    made = tuple(_request(one, prompts, pause_s) for one in requests)
    agents = len({one.agent for one in made})
    name = (
        Path(spec.partition(":")[2]).name if isinstance(spec, str) and ":" in spec else str(getattr(spec, "name", spec))
    )
    text = f"{counted(agents, 'conversation')} of {name}, {counted(len(made), 'request')}"
    text += f", {counted(restarts, 'restart')}" if restarts else ", no restart"
    return AgentWorkload(text, made, restarts, model.eos, tuple(opening_of_answers(model)), user_opening(model))


def _request(request: WorkloadRequest, prompts: Prompts, pause_s: float) -> AgentRequest:
    prompt = prompts.ids(request)
    last = request.messages[-1]["role"] if request.messages else "user"
    return AgentRequest(
        request.conversation, request.turn, prompt, _reply(request, prompt, prompts), pause_s * (last == "user")
    )


def _reply(request: WorkloadRequest, prompt: tuple[int, ...], prompts: Prompts) -> tuple[int, ...]:
    """Return the tokens of the answer, with the one that ends it; as the next prompt has them, where that goes on."""
    model = prompts.model
    end = min(model.eos, default=0)
    if request.reference is None:
        return tuple(model.encode("x " * ANSWER_TOKENS))[: ANSWER_TOKENS - 1] + (end,)
    whole = prompts.ids(request, request.reference)
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        reply = whole[len(prompt) :]
        stop = next((i + 1 for i, token in enumerate(reply) if token in model.eos), len(reply))
        return reply[:stop]
    return (*model.encode(text_of(request.reference)), end)
