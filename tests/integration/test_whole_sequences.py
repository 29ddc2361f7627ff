"""``slots`` and ``prompts`` on models of plain KV, windows and recurrent state: tokens are those of no cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from kvlab.caches import make_caches
from kvlab.caches.sequence_kv import largest_window
from kvlab.decoder import Decoder, logit_distance
from kvlab.decoder.prefill.user_opening import user_opening
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.recording import events
from tests.architectures import WINDOW, load_recipe
from tests.batch_distance import COMMON, PREFILL_STEP, forked
from tests.conftest import MakeModel
from tests.helpers import Weights
from tests.lab import Lab, Prompt, ask, chat, message
from tests.metal.fused_attention import fused, is_installed
from tests.metal.products import summed_in_float32

ANSWER = 6
SYSTEM = message(3, 40)
USER_OPENS = message(13, 9)[:-1]
"""More tokens than the models' templates open a user's message with: caches count those to the system prompt."""

SPECS = ("slots", "slots:n=1,unified=false", "slots:n=2,host=0,unified=false", "prompts", "prompts:count=2,order=lru")


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "falcon-h1"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model of plain KV, one with sliding windows, and a hybrid of attention and recurrent state."""
    yield Lab(load_recipe(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(load_recipe("qwen3", tmp_path_factory.mktemp("plain")))


def turns(conversation: int) -> list[Prompt]:
    first = (*SYSTEM, *USER_OPENS, *chat(50, seed=conversation))
    return [first, (*first, *message(11, 9), *chat(30, seed=conversation + 50)), first]


@pytest.mark.parametrize("spec", SPECS)
def test_answers_are_those_of_no_cache_in_conversations_that_alternate(lab: Lab, spec: str) -> None:
    prompts = [prompt for pair in zip(turns(1), turns(2), strict=True) for prompt in pair]
    with Decoder(lab.loaded, spec) as decoder:
        answers = [answer for prompt in prompts for answer in ask(decoder, [prompt], ANSWER)]
        ties = sum(lab.same(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
    assert ties <= 1, "answers part at ties only"
    assert any(answer.completion.cached_tokens for answer in answers), "something was reused"
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.completion.cached_tokens < len(prompt)
        assert (answer.completion.miss == "") == (answer.completion.cached_tokens == len(prompt) - 1)


@pytest.mark.parametrize("spec", ["slots", "prompts"])
def test_a_repeated_prompt_of_plain_kv_computes_one_token(plain: Lab, spec: str) -> None:
    prompt = chat(150)
    with Decoder(plain.loaded, spec) as decoder:
        first, again = (ask(decoder, [prompt], ANSWER)[0] for _ in range(2))
        longer = ask(decoder, [(*prompt, *first.tokens, *message(5, 30))], ANSWER)[0]
    assert (first.completion.cached_tokens, again.completion.cached_tokens) == (0, len(prompt) - 1)
    assert again.tokens == first.tokens
    kept = len(prompt) + ANSWER - (spec == "slots")
    assert longer.completion.cached_tokens == kept, "slots do not keep the last sampled token"


@pytest.mark.parametrize("spec", ["slots", "slots:unified=false", "prompts"])
def test_requests_side_by_side_answer_as_alone(lab: Lab, spec: str) -> None:
    prompts = [turns(i)[0] for i in range(1, 4)]
    with Decoder(lab.loaded, spec) as decoder:
        for _ in range(2):
            answers = ask(decoder, prompts, ANSWER)
            assert sum(lab.same(p, a) for p, a in zip(prompts, answers, strict=True)) <= 1


class Sink:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def emit(self, event: events.Event) -> None:
        self.events.append(event)


def test_no_more_requests_run_than_there_are_slots(plain: Lab) -> None:
    sink, most, running = Sink(), 0, 0
    with Decoder(plain.loaded, "slots:n=2", recorder=sink) as decoder:
        ask(decoder, [chat(40, seed=i) for i in range(4)], ANSWER)
    for event in sink.events:
        running += isinstance(event, events.Matched) - isinstance(event, events.Finished)
        most = max(most, running)
    assert (most, running) == (2, 0)


def test_running_requests_share_nothing(plain: Lab) -> None:
    prompt = chat(200)
    with Decoder(plain.loaded, "slots") as decoder:
        answers = ask(decoder, [prompt, prompt], ANSWER)
    assert [answer.completion.cached_tokens for answer in answers] == [0, 0]
    assert answers[0].tokens == answers[1].tokens


def cached(decoder: Decoder, prompts: Sequence[Prompt]) -> list[int]:
    return [ask(decoder, [prompt], ANSWER)[0].completion.cached_tokens for prompt in prompts]


def test_sliding_windows_are_cut_within_the_cells_of_the_server_and_start_at_checkpoints_before(tmp_path: Path) -> None:
    lab = Lab(load_recipe("gemma3", tmp_path))
    prompt, cells, kept = message(1, 400), 256, 400 + ANSWER - 1
    first = kept - cells + largest_window(make_caches(lab.loaded.model)) + 1
    branches = [(*prompt[:shared], *message(2, WINDOW)) for shared in (first, first - 1)]
    spec = f"slots:n=1,unified=false,host=0,ubatch={2 * WINDOW}"
    with Decoder(lab.loaded, spec) as decoder:
        assert cached(decoder, [prompt, prompt, branches[0]]) == [0, len(prompt) - 1, first]
    with Decoder(lab.loaded, spec) as decoder:
        assert cached(decoder, [prompt, branches[1]]) == [0, 0], "one token farther back, and before any checkpoint"
    longer, later = (*prompt, *message(5, 300)), (*prompt[:398], *message(2, WINDOW))
    with Decoder(lab.loaded, spec) as decoder:
        assert cached(decoder, [prompt, longer, later]) == [0, 400, 395], (
            "a checkpoint, behind the cells, and its last token again"
        )
    with Decoder(lab.loaded, spec) as decoder:
        answers = [ask(decoder, [one], ANSWER)[0] for one in (prompt, prompt, branches[0], longer, later)]
    assert sum(lab.same(p, a) for p, a in zip((prompt, prompt, branches[0], longer, later), answers, strict=True)) <= 1


def test_recurrent_layers_start_at_the_checkpoint_before_the_end(tmp_path: Path) -> None:
    lab = Lab(load_recipe("falcon-h1", tmp_path))
    prompt = message(1, 100)
    with Decoder(lab.loaded, "slots:n=1,unified=false,ubatch=32") as decoder:
        assert cached(decoder, [prompt, prompt, (*prompt[:70], *message(2, 40))]) == [0, 96, 64]
    with Decoder(lab.loaded, "prompts") as decoder:
        assert cached(decoder, [prompt, prompt, (*prompt, *message(2, 40))]) == [0, 99, 99]


def test_a_hybrid_keeps_the_system_prompt_and_the_user_part(tmp_path: Path) -> None:
    lab = Lab(load_recipe("falcon-h1", tmp_path))
    one, other = ((*SYSTEM, *USER_OPENS, *chat(50, seed=seed)) for seed in (1, 2))
    opening = user_opening(lab.loaded)
    assert 0 < opening < len(USER_OPENS)
    with Decoder(lab.loaded, "prompts") as decoder:
        assert cached(decoder, [one, other]) == [0, len(SYSTEM) + opening]
        decoder.submit((*SYSTEM, *USER_OPENS, *chat(50, seed=3)), max_tokens=2, tags={"last_role": "tool"}).result()
        assert cached(decoder, [one]) == [len(one) - 1]


def test_bytes_of_kept_sequences_are_counted_and_limited(plain: Lab) -> None:
    prompts = [chat(100, seed=i) for i in range(4)]
    sink = Sink()
    with Decoder(plain.loaded, "prompts:count=2", recorder=sink) as decoder:
        assert decoder.tiers_bytes() == {"ram": 0}
        cached(decoder, prompts)
        held = decoder.tiers_bytes()["ram"]
        kept = decoder._scheduler.reuse.plan.known()
    assert held == sum(one.kv.nbytes for one in kept) > 0 and len(kept) == 2
    stored = [event for event in sink.events if isinstance(event, events.Stored)]
    dropped = [event for event in sink.events if isinstance(event, events.Dropped)]
    assert len(stored) == 8, "before the last token of the prompt, and at the end"
    assert [event.reason for event in dropped] == ["evicted"] * 2


def test_an_aborted_request_leaves_its_prompt(plain: Lab) -> None:
    prompt = chat(100)
    for spec in ("slots", "prompts"):
        with Decoder(plain.loaded, spec) as decoder:
            stream = decoder.submit(prompt, max_tokens=10_000)
            next(iter(stream))
            stream.cancel()
            assert stream.result().finish_reason == "cancelled"
            assert cached(decoder, [prompt]) == [len(prompt) - 1]


def test_a_running_request_of_prompts_is_found_by_the_next_one(plain: Lab) -> None:
    one, other = (*SYSTEM, *chat(50, seed=1)), (*SYSTEM, *chat(50, seed=2))
    with Decoder(plain.loaded, "prompts") as decoder:
        stream = decoder.submit(one, max_tokens=10_000)
        next(iter(stream))
        assert decoder.generate(other, max_tokens=2).cached_tokens == len(SYSTEM)
        stream.cancel()


def test_saved_sequences_stay_as_they_are_while_their_slot_goes_on(plain: Lab) -> None:
    one, other = (*SYSTEM, *chat(80, seed=1)), (*SYSTEM, *chat(80, seed=2))
    with Decoder(plain.loaded, "slots:n=1,unified=false") as decoder:
        answers = [ask(decoder, [prompt], ANSWER)[0] for prompt in (one, other, one, other)]
        assert [answer.completion.cached_tokens for answer in answers[2:]] == [len(one) - 1, len(other) - 1]
        assert [dict(answer.completion.cached_by_tier) for answer in answers[2:]] == [
            {"ram": len(one) - 1},
            {"ram": len(other) - 1},
        ]
    assert sum(plain.same(p, a) for p, a in zip((one, other, one, other), answers, strict=True)) <= 1


def test_a_slot_is_free_again_after_an_error_of_its_request(plain: Lab) -> None:
    def fail(_: mx.array, logits: mx.array) -> mx.array:
        raise KvlabError("broken on purpose")

    with Decoder(plain.loaded, "slots:n=1") as decoder:
        with pytest.raises(KvlabError, match="broken on purpose"):
            decoder.submit(chat(40), max_tokens=2, logits_processors=[fail]).result()
        assert cached(decoder, [chat(60)]) == [0]


def test_tenants_share_no_sequences(plain: Lab) -> None:
    prompt = chat(100)
    for spec in ("slots", "prompts"):
        with Decoder(plain.loaded, spec) as decoder:
            decoder.generate(prompt, max_tokens=2, tenant="one")
            assert decoder.generate(prompt, max_tokens=2, tenant="other").cached_tokens == 0
            assert decoder.generate(prompt, max_tokens=2, tenant="one").cached_tokens == len(prompt) - 1


def test_sixteen_bits_lie_no_farther_from_the_request_alone_than_mlx_lms_batch(make_model: MakeModel) -> None:
    loaded, prompts = make_model("llama", Weights("bfloat16"), num_hidden_layers=3), forked(2)
    before = mx.fast.scaled_dot_product_attention
    try:
        if not is_installed():
            mx.fast.scaled_dot_product_attention = fused(before)
        with summed_in_float32(loaded.model):
            wanted = logit_distance.alone(loaded, prompts, PREFILL_STEP)
            batch = logit_distance.in_mlx_lm_batch(loaded, prompts, wanted, PREFILL_STEP)
            reused = [_led_behind_a_common_prefix(loaded, spec, prompts, wanted) for spec in ("slots", "prompts")]
    finally:
        mx.fast.scaled_dot_product_attention = before
    own = logit_distance.distances(batch, wanted)
    for logits in reused:
        other = logit_distance.distances(logits, wanted)
        assert other.mean <= logit_distance.bound(own, other)


def _led_behind_a_common_prefix(
    loaded: LoadedModel, spec: str, prompts: list[Prompt], wanted: logit_distance.Logits
) -> logit_distance.Logits:
    led = logit_distance.leaders(loaded, wanted)
    with Decoder(loaded, spec) as decoder:
        decoder.generate(prompts[0][:COMMON], max_tokens=1)
        for prompt, leader in zip(prompts, led, strict=True):
            done = decoder.generate(prompt, max_tokens=logit_distance.COMPARED_TOKENS, logits_processors=[leader])
            assert done.cached_tokens >= COMMON - 1
    return [leader.logits for leader in led]


@pytest.mark.parametrize("spec", ["slots|quantized:bits=8", "prompts|quantized:bits=8"])
def test_quantized_sequences_are_found_again(plain: Lab, spec: str) -> None:
    prompt = chat(120)
    with Decoder(plain.loaded, spec) as decoder:
        first, again = (ask(decoder, [prompt], ANSWER)[0] for _ in range(2))
    assert again.completion.cached_tokens == len(prompt) - 1 and again.tokens == first.tokens
