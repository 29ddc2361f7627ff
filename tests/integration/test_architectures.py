"""Every cache kind of mlx-lm through the decoder: whatever is reused, the answer is that of no cache.

A request's greedy tokens and logits are compared with those of the same request alone under ``full``, prefilled in
the same steps. Only a first difference at a tie (the two best logits less than TIE apart) is let through, and counted:
``pytest -rP`` shows the count.
"""

import functools
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from kvlab.decoder import Decoder
from kvlab.errors import ModelError
from kvlab.recording import events
from tests.architectures import CHUNK, RECIPES, Recipe, load_recipe
from tests.lab import END, NEAR, OPENING, STEP, TOKENS, Answer, Lab, Prompt, ask, chat, message, policy


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Lab]:
    """Labs by name; each model is loaded once."""
    return functools.cache(lambda name: Lab(load_recipe(name, tmp_path_factory.mktemp(name))))


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture
def lab(request: pytest.FixtureRequest, labs: Callable[[str], Lab], recipe: Recipe) -> Lab:
    return labs(request.node.callspec.params["recipe"])


LENGTHS = (30, 47, 21, 40)
FIRST = chat(*LENGTHS)
BORDERS = tuple(np.cumsum(LENGTHS).tolist())


def test_the_answer_depends_on_the_whole_context(lab):
    model = lab.loaded.model

    def logits(prompt: Prompt) -> np.ndarray:
        return np.array(model(mx.array([prompt]), cache=make_prompt_cache(model))[0, -1])

    plain = logits(FIRST)
    assert np.isfinite(plain).all()
    for at in (1, 60, len(FIRST) - 30):
        other = (*FIRST[:at], FIRST[at] % 200 + 11, *FIRST[at + 1 :])
        assert np.abs(logits(other) - plain).max() > 10 * NEAR


def test_full_gives_what_mlx_lm_gives_alone_and_in_a_ragged_batch(lab):
    prompts = [FIRST, chat(50), chat(9, 70, seed=3), FIRST[:1]]

    def plain(prompt: Prompt) -> Prompt:
        ban = [lambda _, logits: mx.where(mx.arange(logits.shape[-1]) == END, -1e9, logits)]
        steps = generate_step(
            mx.array(prompt), lab.loaded.model, max_tokens=TOKENS, prefill_step_size=STEP, logits_processors=ban
        )
        return tuple(int(token) for token, _ in steps)

    assert [lab.uncached(prompt).tokens for prompt in prompts] == [plain(prompt) for prompt in prompts]
    with Decoder(lab.loaded, "full", prefill_step=STEP) as decoder:
        ties = [lab.same(*pair) for pair in zip(prompts, ask(decoder, prompts), strict=True)]
    print(f"{sum(ties)} ties")


@pytest.mark.parametrize("block", [16, 64])
def test_reuse_never_changes_an_answer(lab, recipe, block, tmp_path):
    ties = 0

    def check(decoder: Decoder, *cases: tuple[Prompt, int]) -> list[Answer]:
        """Ask; every answer must be right, and at least so many tokens reused."""
        nonlocal ties
        answers = ask(decoder, [prompt for prompt, _ in cases])
        for (prompt, least), answer in zip(cases, answers, strict=True):
            ties += lab.same(prompt, answer)
            assert least <= answer.completion.cached_tokens < len(prompt), answer.completion
            if not recipe.stateful and least:
                assert answer.completion.cached_tokens == least
        return answers

    spec = policy(tmp_path / "store", block)
    middle = (*FIRST[:73], *message(5, 60))
    border = (*FIRST[: BORDERS[2]], *message(6, 44), *FIRST[-OPENING:])
    with Decoder(lab.loaded, spec, prefill_step=STEP) as decoder:
        [cold] = check(decoder, (FIRST, 0))
        assert cold.completion.miss == "never_seen"
        check(decoder, (FIRST, BORDERS[-1] if recipe.stateful else len(FIRST) - 1))
        told = len(FIRST) + TOKENS
        second = (*FIRST, *cold.tokens, *message(8, 33), *FIRST[-OPENING:])
        check(decoder, (second, told))
        check(decoder, (middle, BORDERS[0] if recipe.stateful else 73))
        check(decoder, (border, BORDERS[2]))
    with Decoder(lab.loaded, spec, prefill_step=STEP) as decoder:
        third = (*second, *lab.uncached(second).tokens, *message(9, 20), *FIRST[-OPENING:])
        [again] = check(decoder, (third, len(second) + TOKENS))
        assert set(again.completion.cached_by_tier) == {"ssd"}
        fork = (*FIRST[: BORDERS[0]], *message(11, 13))
        check(decoder, (third, len(third) - OPENING if recipe.stateful else len(third) - 1), (chat(25, seed=4), 0),
              (border, len(border) - OPENING if recipe.stateful else len(border) - 1), (fork, BORDERS[0]))  # fmt: skip
    print(f"{ties} ties")


class Log:
    """A recorder that keeps events in a list."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def emit(self, event: events.Event) -> None:
        self.events.append(event)


def test_an_abandoned_prefill_keeps_what_it_computed(lab, recipe, tmp_path):
    long = chat(*[50] * 6)
    log = Log()
    spec = policy(tmp_path, 16, checkpoint=32)
    with Decoder(lab.loaded, spec, prefill_step=32, recorder=log) as decoder:
        stream = decoder.submit(long)
        while not any(isinstance(event, events.Prefilled) and event.done >= 64 for event in log.events):
            assert not stream.done
        if recipe.module != "gemma3_text":
            stream.cancel()
        else:
            decoder.close()  # to a running request, that is the same
        assert stream.result().tokens == ()
    done = max(event.done for event in log.events if isinstance(event, events.Prefilled))
    with Decoder(lab.loaded, spec, prefill_step=STEP) as decoder:
        [answer] = ask(decoder, [long], 2)
    assert answer.completion.cached_tokens == done < len(long)
    lab.same(long, answer)


@pytest.mark.parametrize("retention", ["quantized:bits=8", "knorm:budget=0.5", "rotating:window=40"])
def test_lossy_policies_on_every_kind_of_layer(lab, recipe, retention, tmp_path):
    """They change KVCache leaves only; a ragged batch, and reuse where it is allowed, give what they give alone."""
    if not recipe.codecs:
        with pytest.raises(ModelError, match="use full, paged or tiered") as refusal:
            Decoder(lab.loaded, retention)
        assert "\n" not in str(refusal.value)
        return
    prompts = [FIRST, (*FIRST[: BORDERS[1]], *message(5, 20)), FIRST[:9]]
    with Decoder(lab.loaded, retention, prefill_step=STEP) as decoder:
        want = [ask(decoder, [prompt])[0].tokens for prompt in prompts]
        assert [answer.tokens for answer in ask(decoder, prompts)] == want
    if not retention.startswith("rotating"):
        with Decoder(lab.loaded, f"{retention}|{policy(tmp_path, 16)}", prefill_step=STEP) as decoder:
            assert [answer.tokens for answer in ask(decoder, prompts)] == want
            again = ask(decoder, prompts)
        assert [answer.tokens for answer in again] == want
        assert sum(answer.completion.cached_tokens for answer in again) > len(FIRST)


def test_a_chunk_may_end_exactly_at_a_checkpoint(labs, tmp_path):
    """Behind the border of a chunk, Llama 4's chunked layers need no row of before."""
    lab = labs("llama4")
    prompt = (*message(1, 2 * CHUNK), *message(2, CHUNK // 2))
    with Decoder(lab.loaded, policy(tmp_path / "store", 16), prefill_step=STEP) as decoder:
        for other in (prompt, (*prompt[: 2 * CHUNK], *message(3, 30))):
            [answer] = ask(decoder, [other])
            lab.same(other, answer)
    assert answer.completion.cached_tokens == 2 * CHUNK


def test_an_agent_loop_writes_little_more_than_its_unique_kv(qwen3, tmp_path):
    """Even if the store is flushed after each of 15 turns, and with it every growing tail written."""
    prompt = chat(300)
    with Decoder(qwen3, policy(tmp_path, 32)) as decoder:
        assert decoder.store is not None
        for turn in range(15):
            answer = decoder.generate(prompt, max_tokens=4)
            told = len(prompt) + len(answer.tokens)
            prompt = (*prompt, *answer.tokens, *message(turn, 120))
            assert decoder.store.flush()
        written = decoder.store.stats()["bytes_written"]
    unique = told * qwen3.n_layers * 2 * 2 * 64 * 4
    print(f"{written / unique:.3f} of the unique KV bytes were written")
    assert unique < written <= 1.25 * unique


@pytest.mark.parametrize("name", ["gemma3", "falcon-h1"])
def test_state_of_another_version_is_computed_anew(labs, name, tmp_path, monkeypatch):
    """The cache classes of mlx-lm may change; what they left behind is then a miss, not an error."""
    lab = labs(name)
    with monkeypatch.context() as patch:
        patch.setattr("kvlab.caches.serialize.checkpoint_state", lambda _: ({"0:0": mx.zeros(3)}, {}))
        with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
            ask(decoder, [FIRST], 2)
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        [answer] = ask(decoder, [FIRST], 2)
    lab.same(FIRST, answer)
    assert (answer.completion.cached_tokens, answer.completion.miss) == (0, "corrupt")
