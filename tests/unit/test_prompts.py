"""Prompts under any chat template: every request of a workload is shown whole, and calls are read in any form.

Class of inputs: chat templates with and without tools, calls, results, system messages, and with ids of their own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvlab.experiments import run
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.workloads import Workload, WorkloadRequest, load_workload
from tests.template_kit import FAMILIES, Family, with_template

END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MESSAGE = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
WITHOUT_TOOLS = "{% for m in messages %}" + MESSAGE + "{% endfor %}" + END
"""Shows messages only, as SmolLM2's and many others do; an answer that is a call is empty."""
USERS_AND_ANSWERS = (
    "{% for m in messages %}"
    "{% if m['role'] not in ('user', 'assistant') or (not loop.first and m['role'] == loop.previtem['role']) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}" + MESSAGE + "{% endfor %}" + END
)
TOOLS_WITHOUT_CALLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + WITHOUT_TOOLS
CALLS_WITHOUT_TOOLS = (
    "{% for m in messages %}{% if m['tool_calls'] %}<|im_start|>assistant\n{{ m['tool_calls'] | tojson }}<|im_end|>\n"
    "{% else %}" + MESSAGE + "{% endif %}{% endfor %}" + END
)


@dataclass(frozen=True)
class Written(Family):
    """A template that is written here."""

    text: str = ""

    @property
    def template(self) -> str:
        return self.text


WRITTEN = [
    Written("without-tools", ("<|im_end|>",), text=WITHOUT_TOOLS),
    Written("users-and-answers", ("<|im_end|>",), text=USERS_AND_ANSWERS),
    Written("tools-without-calls", ("<|im_end|>",), text=TOOLS_WITHOUT_CALLS),
    Written("calls-without-tools", ("<|im_end|>",), text=CALLS_WITHOUT_TOOLS),
]


@pytest.fixture(scope="module")
def agent() -> list[WorkloadRequest]:
    return load_workload("agent", turns=5).requests()


def texts(prompts: Prompts, requests: list[WorkloadRequest]) -> list[str]:
    return [prompts.model.decode(prompts.turn(request).prompt) for request in requests]


def said(message: dict[str, Any]) -> list[str]:
    """What a prompt must show of a message, in this order."""
    if message["role"] == "tool":
        return re.findall(r"[#@]\w+", message["content"])
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return [*([message["content"]] if message["content"] else []), *(part for f in calls for part in _parts(f))]


def _parts(function: dict[str, Any]) -> list[str]:
    return [function["name"], *json.loads(function["arguments"]).values()]


@pytest.mark.parametrize("family", [*FAMILIES, *WRITTEN], ids=str)
def test_agent_is_shown_whole_by_any_template(
    family: Family, agent: list[WorkloadRequest], bundled: LoadedModel, tmp_path: Path
) -> None:
    prompts = Prompts(with_template(bundled, family, tmp_path), agent)
    shown = texts(prompts, agent)
    for request, text in zip(agent, shown, strict=True):
        assert all(tool["function"]["description"][:40] in text for tool in request.tools)
        at, (system, *others) = 0, request.messages
        # Some templates show it before the last question; this one nowhere where the last message is a result.
        assert system["content"] in text or (family.name == "mistral_v3" and others[-1]["role"] == "tool")
        for part in (part for message in others for part in said(message)):
            at = text.find(part[:60], at)
            assert at >= 0, part


@pytest.mark.parametrize("family", WRITTEN, ids=str)
def test_prompts_of_later_turns_begin_with_those_of_earlier_ones(
    family: Family, agent: list[WorkloadRequest], bundled: LoadedModel, tmp_path: Path
) -> None:
    shown = texts(Prompts(with_template(bundled, family, tmp_path), agent), agent)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))


def test_template_that_shows_all_gets_the_requests_as_they_are(
    agent: list[WorkloadRequest], bundled: LoadedModel
) -> None:
    prompts = Prompts(bundled, agent)
    assert prompts.facts == {}
    for request in agent:
        assert prompts.turn(request).prompt == tuple(bundled.render(list(request.messages), list(request.tools)))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        (WRITTEN[0], "described in the system prompt, calls read from text"),
        (WRITTEN[1], "described in the system prompt, calls read from text"),
        (WRITTEN[2], "shown by it, calls read from text"),
        (WRITTEN[3], "described in the system prompt, calls in its own form"),
    ],
)
def test_provenance_says_what_became_text(
    family: Family, told: str, agent: list[WorkloadRequest], bundled: LoadedModel, tmp_path: Path
) -> None:
    assert told in Prompts(with_template(bundled, family, tmp_path), agent).facts["tools"]


def test_requests_without_tools_say_nothing_of_tools(bundled: LoadedModel, tmp_path: Path) -> None:
    chat = load_workload("chat", turns=3).requests()
    prompts = Prompts(with_template(bundled, WRITTEN[1], tmp_path), chat)
    assert prompts.facts == {}
    assert all(chat[0].messages[0]["content"] in text for text in texts(prompts, chat))


FORMS = {
    "hermes": '<tool_call>\n{"name": "find_badge", "arguments": {"handle": "@mira"}}\n</tool_call>',
    "mistral_v3": '[TOOL_CALLS][{"name": "find_badge", "arguments": {"handle": "@mira"}}]',
    "mistral_v13": '[TOOL_CALLS]find_badge[ARGS]{"handle": "@mira"}',
    "qwen3_coder": (
        "<tool_call>\n<function=find_badge>\n<parameter=handle>\n@mira\n</parameter>\n</function>\n</tool_call>"
    ),
    "without-tools": '<tool_call>{"name": "find_badge", "arguments": {"handle": "@mira"}}</tool_call>',
}


@pytest.mark.parametrize("name", FORMS)
def test_call_in_the_model_s_own_form_is_graded(
    name: str, agent: list[WorkloadRequest], bundled: LoadedModel, tmp_path: Path
) -> None:
    [family] = [one for one in [*FAMILIES, *WRITTEN] if one.name == name]
    model = with_template(bundled, family, tmp_path)
    prompts = Prompts(model, agent)
    function = agent[0].reference["tool_calls"][0]["function"]  # type: ignore[index]
    right = json.loads(function["arguments"])["handle"]
    written = FORMS[name].replace("@mira", right).replace("find_badge", function["name"])
    assert agent[0].grade(prompts.answer(model.encode(written)))["accuracy"] == 1.0
    for wrong in (written.replace(right, "@nobody"), f"Sure! {written}", written[: len(written) // 2], "It is #123."):
        assert agent[0].grade(prompts.answer(model.encode(wrong)))["accuracy"] == 0.0


@pytest.mark.parametrize("broken", ["", "[TOOL_CALLS]", "[TOOL_CALLS]{", "[TOOL_CALLS][1]", "[TOOL_CALLS][]"])
def test_broken_call_stays_the_text_that_it_is(
    broken: str, agent: list[WorkloadRequest], bundled: LoadedModel, tmp_path: Path
) -> None:
    [family] = [one for one in FAMILIES if one.name == "mistral_v3"]
    model = with_template(bundled, family, tmp_path)
    assert Prompts(model, agent).answer(model.encode(broken)) == broken


class OneCall(Workload):
    """The first request of an agent, with a very short answer."""

    def requests(self) -> list[WorkloadRequest]:
        [first] = load_workload("agent", turns=1).requests()
        return [WorkloadRequest(first.conversation, 1, first.messages, first.tools, first.reference, "call", 2)]


def test_run_on_a_model_without_tools_says_so_in_its_provenance(bundled: LoadedModel, tmp_path: Path) -> None:
    model = with_template(bundled, WRITTEN[0], tmp_path)
    model.tokenizer.eos_token_ids = {bundled.tokenizer.eos_token_id}
    results = run("full", OneCall(), model, progress=False)
    assert "described in the system prompt" in results.provenance["tools"]
    [tokens] = [row["value"] for row in results.rows if row["metric"] == "prompt_tokens"]
    assert tokens > len(bundled.encode(json.dumps(OneCall().requests()[0].tools)))
