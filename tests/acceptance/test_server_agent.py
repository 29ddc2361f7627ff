"""An agent of LangGraph's that works on the served model, and does not notice that the server is killed under it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from kvlab.workloads.agent import CHANGES, LOOKUPS, RECALLS
from kvlab.workloads.desk import RULES, TOOLS
from kvlab.workloads.grading import grade_values
from kvlab.workloads.words import NAMES, fact, value
from tests.server_kit import Endpoint, Local, Served

# LangGraph has no system prompt of its own; this one, with few tools, is what the bundled model was trained on.
SYSTEM = SystemMessage(RULES.split("\n\n")[0])
TURNS = 15


class Directory:
    """What the two tools work on. ``calls`` counts what they were asked to do."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self._names = self._rng.sample(NAMES, 80)
        self.codes = {name: value(self._rng) for name in self._names}
        self.calls: list[tuple[str, str]] = []

    def find_badge(self, handle: str) -> str:
        """The badge of one person, among those of others nearby."""
        self.calls.append(("find_badge", handle))
        near = self._rng.sample([name for name in self._names if f"@{name}" != handle], 3)
        names = [*near, handle.removeprefix("@")]
        self._rng.shuffle(names)
        return json.dumps({"badge": {f"@{name}": self.codes[name] for name in names}})

    def set_badge(self, handle: str, code: str) -> str:
        self.calls.append(("set_badge", handle))
        self.codes[handle.removeprefix("@")] = code
        return json.dumps({"badge": {handle: code}})

    def tools(self) -> list[StructuredTool]:
        """The two, with the schemas that the model knows."""
        schemas = {tool["function"]["name"]: tool["function"] for tool in TOOLS}
        return [
            StructuredTool(
                name=name,
                description=schemas[name]["description"],
                args_schema=schemas[name]["parameters"],
                func=getattr(self, name),
            )
            for name in ("find_badge", "set_badge")
        ]


def tasks(seed: int, directory: Directory) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """What the user says, what the answer must state, and which calls that takes: nine messages, 15 model turns."""
    rng = Random(seed + 1)
    made = []
    known = dict(directory.codes)
    people = rng.sample(list(known), 6)
    for i, name in enumerate(people):
        change = i % 3 == 2
        if change:
            known[name] = value(rng)
        words = rng.choice(CHANGES if change else LOOKUPS).format(thing="badge", name=name, value=known[name])
        made.append((words, fact("badge", name, known[name]), [(f"{'set' if change else 'find'}_badge", f"@{name}")]))
        if i % 2:
            old = people[rng.randrange(i)]
            made.append((rng.choice(RECALLS).format(thing="badge", name=old), fact("badge", old, known[old]), []))
    return made


class Desk:
    """A LangGraph agent at ``server``: a model that calls tools until it answers in words, and remembers."""

    def __init__(self, server: Endpoint, directory: Directory, *, streaming: bool = False) -> None:
        tools = directory.tools()
        model = ChatOpenAI(
            model="tiny", base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=60, max_tokens=48,
            streaming=streaming, stream_usage=True,
        ).bind_tools(tools)  # fmt: skip

        def think(state: Any) -> dict[str, Any]:
            return {"messages": [model.invoke([SYSTEM, *state["messages"]])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", tools_condition)
        graph.add_edge("tools", "think")
        self._graph = graph.compile(checkpointer=InMemorySaver())
        self._about: Any = {"configurable": {"thread_id": "one"}, "recursion_limit": 8}

    def tell(self, words: str) -> list[BaseMessage]:
        """What follows on a message of the user's."""
        said: list[BaseMessage] = self._graph.invoke({"messages": [HumanMessage(words)]}, self._about)["messages"]
        last = max(i for i, message in enumerate(said) if isinstance(message, HumanMessage))
        return said[last + 1 :]


def work(desk: Desk, directory: Directory, seed: int, between: Any = None) -> list[AIMessage]:
    """All tasks, each checked; ``between`` is called after six of nine. The model's turns."""
    turns: list[AIMessage] = []
    for i, (words, right, calls) in enumerate(tasks(seed, directory)):
        if i == 6 and between is not None:
            between()
        before = len(directory.calls)
        said = desk.tell(words)
        assert directory.calls[before:] == calls, words
        assert not [m for m in said if isinstance(m, ToolMessage) and m.status == "error"]
        assert grade_values(str(said[-1].content), right) == {"accuracy": 1.0}, (words, said[-1].content, right)
        turns += [message for message in said if isinstance(message, AIMessage)]
    assert len(turns) == TURNS
    assert not [turn for turn in turns if turn.invalid_tool_calls]
    return turns


def cached(turn: AIMessage) -> float:
    """The share of the prompt that was not recomputed."""
    assert turn.usage_metadata is not None
    return turn.usage_metadata["input_token_details"]["cache_read"] / turn.usage_metadata["input_tokens"]


@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent_framework_does_a_task_of_fifteen_turns(bundled: Any, streaming: bool) -> None:
    with Local("paged", bundled) as server:
        directory = Directory(seed=streaming)
        turns = work(Desk(server, directory, streaming=streaming), directory, seed=streaming)
        assert min(cached(turn) for turn in turns[1:]) > 0.8


def test_agent_continues_after_the_server_was_killed(tmp_path: Path) -> None:
    options = ("--policy", f"tiered:dir={tmp_path / 'store'},write=through")
    servers = [Served(*options, home=tmp_path)]
    port = int(servers[0].url.rpartition(":")[2])

    def accident() -> None:
        servers[-1].kill()
        servers.append(Served(*options, home=tmp_path, port=port))

    try:
        directory = Directory(seed=2)
        turns = work(Desk(servers[0], directory), directory, seed=2, between=accident)
        state = servers[-1].get("/kvlab/state").json()["latest"]
    finally:
        for server in servers:
            server.__exit__()
    assert len(servers) == 2
    after = turns[TURNS - len(state)]  # the first that the second server answered
    assert cached(after) >= 0.95
    assert set(state[-1]["cached_by_tier"]) == {"ssd"}
    assert min(cached(turn) for turn in turns[1:]) > 0.8
