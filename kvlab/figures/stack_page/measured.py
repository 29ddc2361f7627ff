"""The measures of ``docs/stack.md``: the rows of its table, and what more the article's claims are judged by."""

from __future__ import annotations

from kvlab.figures.stack_page.measures import Measure, Rows

TURNS, AGENTS, MEMORY, OVERFLOW = "stack-turns", "stack-agents", "stack-memory", "stack-overflow"
BEYOND = "beyond"
"""The kind of questions whose prompt no longer fits the context."""
LAST_TURN = 15
RESTART_TURN = LAST_TURN // 2 + 1
BEFORE_RESTART = RESTART_TURN - 2
SHORT_SESSION = 3
IN_A_CROWD = (
    "It shares its time between prompts and running answers (`interleave=paced`); a loop that computes prompts first, "
    "or fewer of them side by side, gives first tokens earlier and later ones later."
)
ALONE = (
    "The first prompt of one agent is cold under every design: what differs is what is written beside it, and chance, "
    "which more repeats would tell apart."
)
CROWDS = (1, 4, 8, 32)
GB = 1e9
RESTART = {"phase": "restart"}


def _agents(count: int) -> str:
    return "1 agent" if count == 1 else f"{count} agents"


def _waits(count: int) -> Measure:
    return Measure(
        key=f"p95-{count}",
        title=f"TTFT p95, {_agents(count)}",
        tells=f"Nineteen of twenty requests of {_agents(count)} at once had their first token by then, queue included.",
        better="less",
        of=Rows(AGENTS, "ttft_ms", {"n": count}, "p95"),
        shown="{:,.0f} ms",
        good_for="short waits",
        crowd=count,
        lever=ALONE if count == 1 else IN_A_CROWD,
    )


def _speed(count: int) -> Measure:
    return Measure(
        key=f"speed-{count}",
        title=f"Tokens a second, {_agents(count)}",
        tells=f"Tokens of all answers over the whole time of {_agents(count)}, prefill included.",
        better="more",
        of=Rows(AGENTS, "tokens_per_s", {"n": count, "kind": "together"}),
        shown="{:,.1f}",
        good_for="many tokens a second",
        crowd=count,
        lever=ALONE
        if count == 1
        else "Blocks are hashed and written beside decoding; `paged` alone spares the writing.",
    )


TABLE: tuple[Measure, ...] = (
    Measure(
        key="growth",
        title=f"TTFT, turn {LAST_TURN} over turn 1",
        tells=f"One agent: the time to first token of turn {LAST_TURN}, over that of turn 1, which is cold.",
        better="less",
        of=Rows(TURNS, "ttft_ms", {"turn": LAST_TURN}),
        to=Rows(TURNS, "ttft_ms", {"turn": 1}),
        shown="{:.2g}×",
        good_for="long conversations of one agent",
        lever="What is left is the new tokens of a turn and one decode step; a sequence that stays live "
        "(`kvlab.Decoder(retain=1)`) spares the look-up.",
    ),
    Measure(
        key="restart",
        title="TTFT after a restart, over no cache",
        tells="The first turn of a new process, over the same turn of the same agent without any cache.",
        better="less",
        of=Rows(TURNS, "ttft_ms", RESTART),
        to=Rows(TURNS, "ttft_ms", {"turn": RESTART_TURN}),
        over_no_cache=True,
        shown="{:.2g}×",
        good_for="agents that outlive the server's process",
        lever="Reading blocks back is what it waits for; fewer bits (`quantized`) are fewer bytes to read.",
    ),
    Measure(
        key="found",
        title="Found after a restart",
        tells="The share of that turn's prompt that was not computed again.",
        better="more",
        of=Rows(TURNS, "cached_tokens", RESTART, "sum"),
        to=Rows(TURNS, "prompt_tokens", RESTART, "sum"),
        shown="{:.1%}",
        good_for="prompts that a new process finds again",
        lever="It finds prompts and replies to the token, but for the last one, which is always computed.",
    ),
    *(_waits(count) for count in CROWDS),
    *(_speed(count) for count in CROWDS),
    Measure(
        key="sequences",
        title="Live sequences in 1 GB",
        tells="1 GB over the live KV of one more agent's sequence: how many can run side by side.",
        better="more",
        of=Rows(MEMORY, "kv_bytes_live", {"kind": "running"}),
        per=GB,
        good_for="little memory",
        lever="Fewer bits hold more, and are not lossless: `paged|quantized:bits=4|tiered`.",
    ),
    Measure(
        key="kept",
        title="Waiting agents found again",
        tells="Agents are answered one after another and wait; then each sends its next turn. The share of those of "
        "whose own conversation more than half was found.",
        better="more",
        of=Rows(MEMORY, "hit_ratio", {"kind": "waiting"}),
        shown="{:.0%}",
        good_for="many agents that wait for their next turn",
        lever="More memory, or an SSD tier that is large enough for all of them: `tiered:ram=…,ssd=…`.",
    ),
    Measure(
        key="facts",
        title="Early facts right after overflow",
        tells="Facts stated at the beginning, asked for when the conversation is longer than the context. A design "
        "without a limit of its own keeps all of it, and its memory grows.",
        better="more",
        of=Rows(OVERFLOW, "accuracy", {"kind": BEYOND}),
        shown="{:.0%}",
        good_for="early facts once a conversation is longer than the context",
        lever="Only a longer context, or a retention that keeps those tokens, keeps the fact.",
    ),
    Measure(
        key="written",
        title="Written to the SSD",
        tells=f"One agent, {LAST_TURN} turns with a restart: bytes that went to the disk.",
        better="less",
        of=Rows(TURNS, "bytes_written", {}, "max"),
        scale=1e-6,
        without_store=0.0,
        shown="{:,.3g} MB",
        good_for="an SSD that is to last",
        lever="Nothing is written under `paged|ram`, and nothing survives a restart there; `tiered:daily=…` caps it.",
    ),
    Measure(
        key="calls",
        title="Calls valid",
        tells=f"The share of one agent's tool calls, over {LAST_TURN} turns, that are the call that was asked for.",
        better="more",
        of=Rows(TURNS, "accuracy", {"kind": "call"}),
        shown="{:.0%}",
        good_for="tool calls that stay right",
        lever="`tiered` is lossless: its calls are those of no cache. A model that calls better would win this row.",
    ),
)
"""The rows of the table, in their order."""

FOR_CLAIMS: tuple[Measure, ...] = (
    Measure(
        key="together-8",
        title="Live KV of 8 agents, over that of 1",
        tells="The most live KV at one moment: about 1 where requests run one after the other.",
        better="",
        of=Rows(AGENTS, "kv_bytes_live", {"n": 8, "kind": "together"}),
        to=Rows(AGENTS, "kv_bytes_live", {"n": 1, "kind": "together"}),
        shown="{:.2g}×",
    ),
    Measure(
        key="together-32",
        title="Live KV of 32 agents, over that of 1",
        tells="The same with four times as many.",
        better="",
        of=Rows(AGENTS, "kv_bytes_live", {"n": 32, "kind": "together"}),
        to=Rows(AGENTS, "kv_bytes_live", {"n": 1, "kind": "together"}),
        shown="{:.2g}×",
    ),
    Measure(
        key="warm",
        title=f"Found at turn {LAST_TURN}",
        tells="The share of the last prompt that was not computed again.",
        better="",
        of=Rows(TURNS, "cached_tokens", {"turn": LAST_TURN}, "sum"),
        to=Rows(TURNS, "prompt_tokens", {"turn": LAST_TURN}, "sum"),
        shown="{:.1%}",
    ),
    Measure(
        key="live-last",
        title=f"Live KV of a prompt token, turn {LAST_TURN}",
        tells="Live bytes of the sequence over the tokens of its prompt; less than at turn 1 where tokens are dropped.",
        better="",
        of=Rows(TURNS, "kv_bytes_live", {"turn": LAST_TURN}),
        to=Rows(TURNS, "prompt_tokens", {"turn": LAST_TURN}),
        shown="{:,.0f} B",
    ),
    Measure(
        key="live-first",
        title="Live KV of a prompt token, turn 1",
        tells="The same at the first turn.",
        better="",
        of=Rows(TURNS, "kv_bytes_live", {"turn": 1}),
        to=Rows(TURNS, "prompt_tokens", {"turn": 1}),
        shown="{:,.0f} B",
    ),
    Measure(
        key="written-before",
        title="Written before the restart",
        tells=f"Bytes that had gone to the disk by turn {BEFORE_RESTART}, while the process was running.",
        better="",
        of=Rows(TURNS, "bytes_written", {"turn": BEFORE_RESTART}),
        scale=1e-6,
        without_store=0.0,
        shown="{:,.3g} MB",
    ),
    Measure(
        key="calls-kept",
        title="Calls valid, over no cache",
        tells="Whether a cache costs calls: the share of valid ones over that of the same agent without a cache.",
        better="",
        of=Rows(TURNS, "accuracy", {"kind": "call"}),
        to=Rows(TURNS, "accuracy", {"kind": "call"}),
        over_no_cache=True,
        shown="{:.2g}×",
    ),
    Measure(
        key="short",
        title=f"TTFT of turns 1 to {SHORT_SESSION}, together",
        tells="What one agent of a short session waits for, all of its first tokens together.",
        better="less",
        of=Rows(TURNS, "ttft_ms", {"turn": tuple(range(1, SHORT_SESSION + 1))}, "sum"),
        shown="{:,.0f} ms",
    ),
    Measure(
        key="waiting",
        title="Memory of one more waiting agent",
        tells="What one more agent that waits for its next turn adds to the KV in memory; KV on the SSD adds none.",
        better="",
        of=Rows(MEMORY, "kv_bytes_ram", {"kind": "waiting"}),
        scale=1e-6,
        shown="{:,.3g} MB",
    ),
    Measure(
        key="in-ram",
        title="At rest in memory",
        tells="The most bytes of KV at rest in memory, over one agent's turns, those on their way to the SSD included.",
        better="",
        of=Rows(TURNS, "kv_bytes_ram", {}, "max"),
        scale=1e-6,
        without_store=0.0,
        shown="{:,.3g} MB",
    ),
    Measure(
        key="on-ssd",
        title="At rest on the SSD",
        tells="The most bytes of KV on the SSD, over the turns of one agent.",
        better="",
        of=Rows(TURNS, "kv_bytes_ssd", {}, "max"),
        scale=1e-6,
        without_store=0.0,
        shown="{:,.3g} MB",
    ),
)

MEASURES = {measure.key: measure for measure in (*TABLE, *FOR_CLAIMS)}
AT_THE_LIMIT = frozenset({"refused", "cut_tokens", "discarded_tokens"})
METRICS = AT_THE_LIMIT.union(*(measure.metrics for measure in MEASURES.values()))
"""The metrics whose rows the page needs."""
