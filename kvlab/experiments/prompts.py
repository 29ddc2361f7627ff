"""From a request of a workload to the token ids of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from kvlab.errors import RunError
from kvlab.experiments.conversations import Turn
from kvlab.models import LoadedModel
from kvlab.workloads import WorkloadRequest


def rendered(model: LoadedModel, request: WorkloadRequest) -> Turn:
    """Render a request with the model's chat template. Raises ModelError where the template refuses it."""
    prompt = tuple(model.render(list(request.messages), list(request.tools)))
    seen = tokens_before(model, prompt, request.unseen) if request.unseen else None
    return Turn(request.conversation, request.turn, prompt, request.max_tokens, seen)


def tokens_before(model: LoadedModel, prompt: Sequence[int], text: str) -> int:
    """Count the tokens of `prompt` in front of the last place where `text` is in it; none of them holds any of it.

    Raises RunError where the chat template has changed the text, or where nothing is in front of it.
    """
    for count in range(len(prompt) - 1, 0, -1):
        if text in model.decode(prompt[count:]):
            return count
    raise RunError(f"the chat template of {model.name} does not show this part of a message as it is: {text[:60]!r}")
