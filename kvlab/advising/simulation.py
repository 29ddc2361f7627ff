"""Simulates the request loop of a server on a replay of its cache: who waits how long, in seconds of a stated speed.

The loop is that of kvlab's decoder: in each round one decode step of all answers, and work on prompts as the settings
say. Deviations: shares of tenants and groups are not looked at, and a running answer is not preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvlab.advising.agents import AgentRequest, AgentWorkload
from kvlab.advising.replay import ReuseReplay, Started, Tokens
from kvlab.decoder.config import CHUNKS, NONE, DecoderConfig
from kvlab.decoder.context_limit import ContextError, ContextLimit
from kvlab.decoder.prefill.budget import MAX_ROUND_STEPS
from kvlab.decoder.prefix_tree import MIN_SHARED_TOKENS
from kvlab.policies import Paged
from kvlab.speed import Speed

DEFAULT_CHUNK_TOKENS = 512
"""Prompt tokens at a time where the settings leave it to the device."""
SPARE_TOKENS = 80
"""Rows that a sequence may hold besides its tokens."""


@dataclass(frozen=True)
class SimulatedTurn:
    """What came of one request: ``ttft_s`` from its arrival on; ``is_refused`` where the context is too short for it.

    ``is_first`` is the first one of its agent after a restart. ``read`` are bytes from SSD.
    """

    agent: str
    turn: int
    prompt_tokens: int
    cached: int
    ttft_s: float
    read: int = 0
    part: int = 0
    is_first: bool = False
    is_refused: bool = False


@dataclass(frozen=True)
class Simulated:
    """All requests of a workload under one design, the bytes in memory at most, live and at rest, and those of SSD."""

    turns: tuple[SimulatedTurn, ...]
    memory_bytes: int
    ssd_bytes: int
    written: int
    seconds: float


@dataclass(eq=False)
class _Active:
    request: AgentRequest
    arrived: float
    started: Started
    prompt: Tokens
    reply: Tokens
    done: int
    left: int
    """Prompt tokens to compute; then the tokens of the answer to come are in ``to_say``."""
    to_say: int
    owned: int = 0
    """Tokens whose KV no other sequence holds."""


@dataclass
class _Agent:
    requests: deque[AgentRequest]
    ready: float = 0.0
    asked: bool = False
    count: int = field(default=0)


class LoopSimulation:
    """One server that serves one workload.

    Args:
        places: most requests that run side by side, besides what the settings say.
    """

    def __init__(self, replay: ReuseReplay, config: DecoderConfig, speed: Speed, *, places: int | None = None) -> None:
        self._replay, self._config, self._speed = replay, config, speed
        self._most = min(config.max_concurrency, places or config.max_concurrency)
        self._chunk = config.prefill_step or DEFAULT_CHUNK_TOKENS
        reuse = replay.policy.reuse
        self._shares = isinstance(reuse, Paged) and reuse.live and replay.policy.retention.is_lossless
        self._limit: ContextLimit = config.limit()
        self._now = 0.0
        self._active: list[_Active] = []
        self._retained: deque[tuple[Tokens, int]] = deque()
        self._turns: list[SimulatedTurn] = []
        self._peak = self._peak_ssd = 0

    def run(self, workload: AgentWorkload) -> Simulated:
        """Serve all parts, with a restart between two of them."""
        for number, part in enumerate(workload.parts()):
            if number:
                self._replay.restart()
                self._retained.clear()
            self._serve([_Agent(deque(own), self._now) for own in part if own], number)
        self._replay.close()
        self._note_memory()
        return Simulated(tuple(self._turns), self._peak, self._peak_ssd, self._replay.written, self._now)

    def _serve(self, agents: Sequence[_Agent], part: int) -> None:
        owner = {agent.requests[0].agent: agent for agent in agents}
        waiting: deque[tuple[float, AgentRequest]] = deque()
        for agent in agents:
            agent.ready = self._now  # all agents go on when the server is there again
        while any(agent.requests for agent in agents) or waiting or self._active:
            due = [a for a in agents if a.requests and not a.asked and a.ready <= self._now]
            for agent in sorted(due, key=lambda one: one.ready):
                waiting.append((agent.ready, agent.requests.popleft()))
                agent.asked = True
            self._admit(waiting, owner, part)
            if self._active:
                self._round(owner, part, is_waiting=bool(waiting))
            elif not waiting:
                coming = [a.ready for a in agents if a.requests and not a.asked]
                self._now = max([self._now, min(coming, default=self._now)])

    # -- admission --------------------------------------------------------------------------------------------------

    def _admit(self, waiting: deque[tuple[float, AgentRequest]], owner: dict[str, _Agent], part: int) -> None:
        for item in list(waiting):
            if len(self._active) >= self._most:
                return
            arrived, request = item
            cut = self._within_context(request)
            if cut is None:
                waiting.remove(item)
                self._turns.append(self._turn(request, part, owner, 0, 0.0, is_refused=True))
                self._next(owner[request.agent])
                continue
            prompt, reply = cut
            live, to_come = self._live(prompt)
            if to_come >= live + MIN_SHARED_TOKENS:
                continue  # another prompt computes what this one can then start from
            if not self._has_room(len(prompt) - live):
                return
            waiting.remove(item)
            self._start(request, arrived, prompt, reply, live)

    def _start(self, request: AgentRequest, arrived: float, prompt: Tokens, reply: Tokens, live: int) -> None:
        started = self._replay.start(prompt, live)
        started.is_alone = not self._active
        for other in self._active:
            other.started.is_alone = False
        self._now += started.copied / self._speed.memory + started.read / self._speed.ssd
        if self._retained and self._shares:
            self._take_over(prompt, started.cached)
        owned = len(prompt) + len(reply) - live
        self._active.append(
            _Active(
                request, arrived, started, prompt, reply, started.cached, len(prompt) - started.cached,
                len(reply), owned,
            )
        )  # fmt: skip
        while self._retained and len(self._retained) + len(self._active) > self._most:
            self._retained.popleft()
        self._note_memory()

    def _within_context(self, request: AgentRequest) -> tuple[Tokens, Tokens] | None:
        """Return prompt and reply as the context limit leaves them; None where the request is refused."""
        try:
            start, stop = self._limit.cut(len(request.prompt))
            prompt = request.prompt[:start] + request.prompt[stop:]
            said = max(1, self._limit.answer(len(prompt), len(request.reply)))
        except ContextError:
            return None
        return prompt, request.reply[:said]

    def _live(self, prompt: Tokens) -> tuple[int, int]:
        """Return how many leading tokens are live in another sequence, and how many will be once it is computed."""
        if not self._shares:
            return 0, 0
        limit, now, later = len(prompt) - 1, 0, 0
        for other in self._active:
            common = min(limit, _common(prompt, other.prompt))
            now = max(now, min(common, other.done))
            later = max(later, common)
        for tokens, _ in self._retained:
            common = min(limit, _common(prompt, tokens))
            now, later = max(now, common), max(later, common)
        return (now, later) if later >= MIN_SHARED_TOKENS else (0, 0)

    def _take_over(self, prompt: Tokens, cached: int) -> None:
        """Drop the retained sequence that this request continues."""
        for one in self._retained:
            if cached >= len(one[0]) - max(MIN_SHARED_TOKENS, len(one[0]) // 8) > 0 and _common(prompt, one[0]) > 0:
                self._retained.remove(one)
                return

    def _has_room(self, tokens: int) -> bool:
        budget = self._config.live_bytes
        if budget is None or not self._active:
            return True
        while (self._live_tokens() + tokens + SPARE_TOKENS) * self._replay.token_bytes > budget:
            if not self._retained:
                return False
            self._retained.popleft()
        return True

    def _live_tokens(self) -> int:
        return sum(one.owned for one in self._active) + sum(owned for _, owned in self._retained)

    def _note_memory(self) -> None:
        live = self._live_tokens() * self._replay.token_bytes
        self._peak = max(self._peak, live + self._replay.nbytes)
        self._peak_ssd = max(self._peak_ssd, self._replay.ssd_bytes)

    # -- a round ----------------------------------------------------------------------------------------------------

    def _round(self, owner: dict[str, _Agent], part: int, *, is_waiting: bool) -> None:
        saying = [one for one in self._active if not one.left]
        reading = [one for one in self._active if one.left][: self._config.prefill_batch]
        step = self._speed.step(len(saying)) if saying else 0.0
        if saying and reading and self._config.interleave == NONE:
            saying, step = [], 0.0
        if saying and not reading:
            self._say(saying, step, owner, many=not is_waiting)
            return
        begins = any(one.done == one.started.cached for one in reading)
        seconds = step + (self._speed.base_s if begins else 0.0)  # prompts of one round go through the model together
        for one in reading:
            tokens = min(one.left, self._chunk_beside(one, step, len(reading)))
            seconds += self._speed.prefill(one.done, tokens)
            one.done, one.left = one.done + tokens, one.left - tokens
        self._now += seconds
        for one in reading:
            if not one.left:
                self._first_token(one, owner, part)
        self._finish([one for one in saying if self._said(one, 1)], owner)
        self._finish([one for one in reading if not one.left and not one.to_say], owner)

    def _chunk_beside(self, one: _Active, step: float, reading: int) -> int:
        """Return the prompt tokens of a round."""
        if not step or self._config.interleave == CHUNKS:
            return self._chunk
        room = (MAX_ROUND_STEPS - 1) * step / reading
        return max(1, min(self._chunk, self._speed.fitting(one.done, room)))

    def _first_token(self, one: _Active, owner: dict[str, _Agent], part: int) -> None:
        self._replay.computed(one.started)
        ttft = self._now - one.arrived
        self._turns.append(self._turn(one.request, part, owner, one.started.cached, ttft, read=one.started.read))
        one.to_say -= 1

    def _say(self, saying: list[_Active], step: float, owner: dict[str, _Agent], *, many: bool) -> None:
        """Decode one step, or as many as change nothing."""
        steps = min(one.to_say for one in saying) if many else 1
        ready = [a.ready for a in owner.values() if a.requests and not a.asked]
        if many and ready:
            steps = max(1, min(steps, int((min(ready) - self._now) / step) + 1))
        self._now += steps * step
        self._finish([one for one in saying if self._said(one, steps)], owner)

    @staticmethod
    def _said(one: _Active, steps: int) -> bool:
        one.to_say -= steps
        return one.to_say <= 0

    def _finish(self, ended: Sequence[_Active], owner: dict[str, _Agent]) -> None:
        for one in ended:
            self._active.remove(one)
            if self._has_shifted(one):
                self._replay.drop(one.started)
            else:
                self._now += self._replay.end(one.started, one.reply) / self._speed.memory
            if self._shares and self._config.retain and not self._has_shifted(one):
                self._retained.append((one.prompt + one.reply, one.owned))
                while len(self._retained) > self._config.retain:
                    self._retained.popleft()
            self._note_memory()
            self._next(owner[one.request.agent])

    def _has_shifted(self, one: _Active) -> bool:
        """Return whether tokens were dropped at the context limit: such KV is not kept."""
        return self._limit.shifts and len(one.prompt) + len(one.reply) > (self._limit.context or 0)

    def _next(self, agent: _Agent) -> None:
        agent.asked = False
        if agent.requests:
            agent.ready = self._now + agent.requests[0].pause_s

    def _turn(
        self,
        request: AgentRequest,
        part: int,
        owner: dict[str, _Agent],
        cached: int,
        ttft_s: float,
        *,
        read: int = 0,
        is_refused: bool = False,
    ) -> SimulatedTurn:
        agent = owner[request.agent]
        agent.count += 1
        is_first = part > 0 and agent.count == 1
        return SimulatedTurn(
            request.agent, request.turn, len(request.prompt), cached, ttft_s, read, part, is_first, is_refused
        )


def _common(one: Tokens, other: Tokens) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    low, high = 0, shorter  # tuples compare quickly, so the place where they part is found by halves
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low if one[low] != other[low] else high
