"""A session with a server: prompts whose tokens are known, and the cached tokens that the server reports of each."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jinja2
from process import ServerProcess
from tokenizers import Tokenizer
from tqdm import tqdm
from word_chain import chain, plain_words

from kvlab.systems.observations import Event

ANSWER_S = 600
LONGEST_REPLY = 64


class Language:
    """What a model's folder says of its tokens: read here with little, since a machine may be busy with the server."""

    def __init__(self, model: Path, *, replies_known: bool = True) -> None:
        self.replies_known = replies_known
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._begin: list[int] = self._tokenizer.encode("").ids
        settings = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701 - no HTML
        self._template = settings.from_string(self._settings.get("chat_template", ""))
        # The list's end is left out: a reply must not run past it.
        self._words = plain_words(self._tokenizer.get_vocab())[:-LONGEST_REPLY]
        self._chain = chain(self._tokenizer.get_vocab()) if replies_known else {}
        self._end = self._tokenizer.token_to_id(self._settings["eos_token"])

    def take(self, count: int, seed: str) -> str:
        """Return ``count`` words that a seed gives, each after a space: ``count`` tokens."""
        return "".join(f" {word}" for word in random.Random(seed).choices(self._words, k=count))

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, with none before or behind them."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def begun(self, text: str) -> list[int]:
        """Return the tokens of a plain prompt, behind that with which every text begins, where the model has one."""
        return [*self._begin, *self.encode(text)]

    def reply(self, tokens: list[int], count: int) -> list[int]:
        """Return what a model of known replies says after ``tokens``."""
        said = tokens[-1:]
        for _ in range(count):
            said.append(self._chain.get(said[-1], said[-1]))
        return said[1:]

    def message_ends(self, tokens: list[int]) -> list[int]:
        """Return the token counts up to the end of each message of a prompt."""
        return [at + 1 for at, token in enumerate(tokens) if token == self._end]

    def user_opening(self) -> int:
        """Return the tokens between the end of a message and the words of a user's next one: 0 without a template."""
        if "chat_template" not in self._settings:
            return 0
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tokens = self.encode(self.render([*messages, {"role": "user", "content": ""}], opens_reply=False))
        ends = self.message_ends(tokens)
        return ends[-1] - 1 - ends[-2]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens, a space before its first word included."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def read_back(self, said: str, count: int) -> list[int]:
        """Return the tokens of a reply that came as text: ``count`` of them, or those that the text is read as.

        The second is enough for a server that keeps no replies.
        """
        readings = [self.encode(said), self.encode(f" {said}")]
        return next((tokens for tokens in readings if len(tokens) == count), readings[0])

    def render(self, messages: list[dict[str, str]], *, opens_reply: bool) -> str:
        """Return a conversation as the model's template writes it."""
        return self._template.render(messages=messages, add_generation_prompt=opens_reply, **self._settings)


@dataclass
class Asked:
    """One request of a session: its tokens, those of the reply, and what the server said of them."""

    scenario: str
    step: str
    route: Event
    prompt: list[int]
    suffix: int
    """Tokens at the prompt's end that the chat template adds for the reply to begin."""
    reply: list[int]
    cached: int | None
    note: str = ""
    ends: list[int] = field(default_factory=list)
    """Tokens of the prompt up to the end of each message."""
    last_role: str = ""
    """Whose the last message is."""


@dataclass
class Session:
    """Asks a server one thing after the other and keeps what came of it, in order, restarts included."""

    server: ServerProcess
    language: Language
    bar: tqdm[Any]
    done: list[Asked] = field(default_factory=list)
    scenario: str = ""

    def __post_init__(self) -> None:
        # mlx_lm.server lists what lies in a download folder, and answers without a name.
        listed = {} if self.server.setup.server == "mlx-lm" else httpx.get(f"{self.server.url}/v1/models").json()
        self.model: dict[str, str] = {"model": listed["data"][0]["id"]} if listed else {}
        self.long = self.server.setup.long

    def take(self, count: int, name: str) -> str:
        """Return words of this scenario, the same in each session."""
        return self.language.take(count, f"{self.scenario} {name}")

    def complete(self, step: str, prompt: str, reply: int = 4) -> str:
        """Have a plain text continued; return the continuation, spaces included that a server may leave out."""
        tokens = self.language.begun(prompt)
        body = {"prompt": prompt, "max_tokens": reply, **self._wants_ids(1)}
        answer = self._post("/v1/completions", body, step, tokens)
        if answer is None:
            return ""
        return self._keep("completion", step, tokens, 0, answer["choices"][0]["text"], answer, reply)

    def chat(self, step: str, messages: list[dict[str, str]], reply: int = 4) -> str:
        """Have a conversation continued; return the reply."""
        prompt = self.language.render(messages, opens_reply=True)
        tokens = self.language.encode(prompt)
        closed = self.language.encode(self.language.render(messages, opens_reply=False))
        body = {"messages": messages, "max_tokens": reply, **self._wants_ids(True)}
        answer = self._post("/v1/chat/completions", body, step, tokens)
        if answer is None:
            return ""
        said = answer["choices"][0]["message"]["content"] or ""
        text = self._keep("chat", step, tokens, len(tokens) - len(closed), said, answer, reply)
        self.done[-1].ends = self.language.message_ends(tokens)
        self.done[-1].last_role = messages[-1]["role"]
        return text

    def restart(self, step: str, *, kill: bool = False) -> None:
        """Stop the server and start it on what it left."""
        self.server.restart(kill=kill)
        self.done.append(Asked(self.scenario, step, "kill" if kill else "restart", [], 0, [], None))

    def _wants_ids(self, llama: int) -> dict[str, Any]:
        """Return the option with which a server tells the tokens of its reply; none where they are known."""
        if self.language.replies_known or self.server.setup.server not in ("llama-server", "mlx-lm"):
            return {}
        return {"logprobs": llama if self.server.setup.server == "llama-server" else True}

    def _post(self, route: str, body: dict[str, Any], step: str, tokens: list[int]) -> dict[str, Any] | None:
        """Ask; a request that fails is kept as such, with the server's words."""
        self.bar.set_postfix_str(f"{self.scenario}: {step}")
        self.bar.update()
        try:
            response = httpx.post(
                f"{self.server.url}{route}", json={**self.model, "temperature": 0, **body}, timeout=ANSWER_S
            )
            response.raise_for_status()
            answer: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            failed = f"failed: {type(error).__name__} {error}".splitlines()[0].replace(self.server.url, "")
            kind: Event = "chat" if "chat" in route else "completion"
            self.done.append(Asked(self.scenario, step, kind, tokens, 0, [], None, note=failed))
            return None
        return answer

    def _keep(
        self, route: Event, step: str, tokens: list[int], suffix: int, said: str, answer: dict[str, Any], most: int
    ) -> str:
        """Keep a request and return its reply, of which ``most`` tokens were asked for.

        Raises RuntimeError where the server read other tokens than those that were meant, or said something else.
        """
        usage = answer["usage"]
        # One server counts a token more than it was asked for, and does not say it.
        reply = self._reply(tokens, min(most, usage["completion_tokens"]), said, answer["choices"][0])
        text = self.language.decode(reply)
        if usage["prompt_tokens"] != len(tokens) or said.strip() != text.strip():
            raise RuntimeError(
                f"{self.scenario}, {step}: the server reads {usage['prompt_tokens']} tokens and says {said!r}; "
                f"{len(tokens)} and {text!r} were meant"
            )
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        self.done.append(Asked(self.scenario, step, route, tokens, suffix, reply, cached))
        return text

    def _reply(self, tokens: list[int], count: int, said: str, choice: dict[str, Any]) -> list[int]:
        """Return the tokens of a reply: known, told by the server, or read back from the text."""
        if self.language.replies_known:
            return self.language.reply(tokens, count)
        if told := choice.get("logprobs"):
            return [token["id"] for token in told["content"]]
        return self.language.read_back(said, count)
