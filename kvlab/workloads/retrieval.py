"""`retrieval`: a document of facts between filler sentences, then questions about single facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from kvlab.errors import WorkloadError
from kvlab.workloads.base import Message, Workload, WorkloadRequest, assistant, check_count, cut_turns, system, user
from kvlab.workloads.words import NAMES, THINGS, estimate_tokens, fact, filler, question, value

SYSTEM = "You answer questions about the document that the user gives you."
_FRAME_TOKENS = 60  # system prompt, question and the template around them
_TOKENS_PER_FACT = 45  # one fact per about three filler sentences
QUESTIONS = ("after", "none")


class Retrieval(Workload):
    """`n` documents of about `tokens` tokens, each followed by `turns` questions.

    Args:
        question: `after` the document; `none`: seen only once the KV of the document has been evicted, so that no
            method can choose by it. Also written `question=none`, as it stands in a spec.
        count: counts the tokens of a text; without it a rule of thumb for the bundled tokenizer does.
    """

    name = "retrieval"
    argument = "question=WHEN"

    def __init__(
        self,
        question: str = "after",
        n: int = 1,
        seed: int = 0,
        tokens: int = 1500,
        turns: int = 1,
        count: Callable[[str], int] | None = None,
    ) -> None:
        check_count("tokens", tokens, least=100)
        check_count("turns", turns)
        check_count("n", n)
        self.question = question.removeprefix("question=")
        if self.question not in QUESTIONS:
            choices = " or ".join(f"retrieval:question={one}" for one in QUESTIONS)
            raise WorkloadError(f"retrieval:{question}: write {choices}")
        if self.question == "none":
            self.name = "retrieval:question=none"
        self.n, self.seed, self.tokens, self.turns = n, seed, tokens, turns
        self.count = count or estimate_tokens

    def requests(self) -> list[WorkloadRequest]:
        return [request for i in range(self.n) for request in self._conversation(i)]

    def _conversation(self, index: int) -> list[WorkloadRequest]:
        rng = Random(f"retrieval/{self.seed}/{index}")
        facts, document = self._document(rng)
        messages: list[Message] = [system(SYSTEM)]
        asked = rng.sample(facts, min(self.turns, len(facts)))
        asked += rng.choices(facts, k=self.turns - len(asked))  # more questions than facts: some come twice
        questions = []
        for turn, (thing, name, known) in enumerate(asked):
            asks = question(rng, thing, name)
            questions.append(asks)
            messages.append(user(f"{document}\n\n{asks}" if turn == 0 else asks))
            messages.append(assistant(fact(thing, name, known)))
        kinds = dict.fromkeys(range(len(messages)), "retrieve")
        requests = cut_turns(f"retrieval-{index}", messages, kinds)
        if self.question == "after":
            return requests
        return [replace(request, unseen=asks) for request, asks in zip(requests, questions, strict=True)]

    def _document(self, rng: Random) -> tuple[list[tuple[str, str, str]], str]:
        """Return facts and the text that states them, filler sentences shuffled in between up to the wanted length."""
        room = self.tokens - _FRAME_TOKENS
        n_facts = min(len(NAMES), max(2, room // _TOKENS_PER_FACT))
        facts = [(rng.choice(THINGS), name, value(rng)) for name in rng.sample(NAMES, n_facts)]
        sentences = [fact(*item) for item in facts]
        used = sum(self.count(" " + sentence) for sentence in sentences)
        while used < room:
            sentence = filler(rng)
            used += self.count(" " + sentence)
            sentences.append(sentence)
        rng.shuffle(sentences)
        return facts, " ".join(sentences)
