"""A panel that colours tokens by the state of their KV, step by step, under a policy that its user chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets

from kvlab import models
from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.inspection.request_trace import Prompt, RequestTrace, prompt_ids, watch
from kvlab.models import LoadedModel
from kvlab.policies import Policy, registry
from kvlab.widgets.panel import Drawn, Panel

BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.75)
ALL = "all"


def watch_evictions(
    prompts: Mapping[str, Prompt],
    model: str | Path | LoadedModel | None = None,
    *,
    policy: str = "snapkv",
    budget: float = 0.3,
    max_tokens: int = 32,
) -> Panel:
    """Scrub through the decode steps of a few requests: kept, evicted, shared and restored tokens of a layer and head.

    ``prompts`` are texts, conversations or token ids by label: the first is served alone, then the others together.
    In the panel ``policy`` is a name, to which the budget is applied, or a whole spec. A new choice is a new run.
    Raises KvlabError where there are no prompts, or no such model.
    """
    if not prompts:
        raise RunError("no prompts to watch; give some by label, such as {'a question': 'What is ...?'}")
    loaded = model if isinstance(model, LoadedModel) else models.load(model)
    ids = [prompt_ids(prompt, loaded) for prompt in prompts.values()]
    runs: dict[str, list[RequestTrace]] = {}
    labels = list(prompts)
    names = [info.name for info in registry() if info.slot == "retention"]
    controls: dict[str, Any] = {
        "policy": ipywidgets.Combobox(
            value=policy, options=names, continuous_update=False, description="policy", placeholder="a name, or a spec"
        ),
        "budget": ipywidgets.SelectionSlider(
            value=budget, options=sorted({*BUDGETS, budget}), continuous_update=False, description="budget"
        ),
        "reuse": ipywidgets.Checkbox(value=False, description="paged reuse", indent=False),
        "request": ipywidgets.Dropdown(options=labels, description="request"),
        "layer": ipywidgets.Dropdown(options=[ALL], description="layer"),
        "head": ipywidgets.Dropdown(options=[ALL], description="KV head"),
        "step": ipywidgets.IntSlider(value=0, min=0, max=1, description="step"),
    }
    play = ipywidgets.Play(min=0, max=1, interval=350)
    ipywidgets.jslink((play, "value"), (controls["step"], "value"))
    ipywidgets.jslink((controls["step"], "max"), (play, "max"))

    def draw(policy: str, budget: float, reuse: bool, request: str, layer: Any, head: Any, step: int) -> Drawn:
        asked = spec(policy, budget, reuse, shortest=min(map(len, ids)))
        if asked not in runs:
            runs[asked] = watch(asked, ids, loaded, max_tokens=max_tokens)
        shown = runs[asked][labels.index(request)]
        controls["step"].max = max(1, shown.steps)
        layer = _offer(controls["layer"], shown.layers, layer)
        head = _offer(controls["head"], shown.heads, head)
        step = min(step, shown.steps)
        done = shown.completion
        tiers = ", ".join(f"{count} {tier}" for tier, count in done.cached_by_tier.items()) or "none"
        note = (
            f"{counted(done.prompt_tokens, 'prompt token')}, cached: {tiers} · live KV at the end "
            f"{done.kv_bytes_live / 1e6:.2f} MB · answer <b>{escape(shown.answer.strip())}</b>"
        )
        return Drawn(note, shown.html(step, None if layer == ALL else layer, None if head == ALL else head))

    return Panel(controls, draw, play)


def spec(policy: str, budget: float, reuse: bool = False, *, shortest: int = 256) -> str:
    """Return the policy spec of the panel's values. A window is given in tokens: ``budget`` of the shortest prompt."""
    name = policy.strip()
    if (
        not set(name) & set(":|")
        and name != "full"
        and any(i.name == name for i in registry() if i.slot == "retention")
    ):
        name = (
            f"rotating:window={max(8, round(budget * shortest))}" if name == "rotating" else f"{name}:budget={budget}"
        )
    return str(Policy.parse(f"{name}|paged" if reuse else name))


def _offer(control: Any, values: Sequence[int], chosen: Any) -> Any:
    """Give a dropdown its choices, and keep the one that is chosen where it is still there."""
    options = [ALL, *values]
    if list(control.options) != options:
        control.options = options
        control.value = chosen if chosen in options else ALL
    return control.value
