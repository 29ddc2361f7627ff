"""A model loaded on one thread runs on another, whatever its rotary embeddings: MLX's streams are thread-local."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from kvlab.bench.request_times import no_end
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from tests.architectures import write_recipe
from tests.scaled_rope import ARCHITECTURES, ROPE_TYPES, UNSUPPORTED, scaled_recipe
from tests.server_kit import Local

PROMPTS = [[5 + (7 * i + seed) % 200 for i in range(length)] for seed, length in ((1, 41), (2, 9), (3, 67))]
TOKENS = 8
Answers = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[LoadedModel, Answers]]:
    """A model, loaded on a thread that has ended, and what mlx-lm answers; each is made once."""

    @functools.cache
    def make(architecture: str, rope_type: str) -> tuple[LoadedModel, Answers]:
        folder = tmp_path_factory.mktemp(f"{architecture}-{rope_type}")
        write_recipe(scaled_recipe(architecture, rope_type), folder)
        with ThreadPoolExecutor(1) as thread:
            loaded = thread.submit(load, folder).result()
        with ThreadPoolExecutor(1) as thread:  # a model of its own: answering would evaluate what loading left lazy
            return loaded, thread.submit(lambda: [_plain_answer(load(folder), prompt) for prompt in PROMPTS]).result()

    return make


def _plain_answer(loaded: LoadedModel, prompt: list[int]) -> tuple[int, ...]:
    steps = generate_step(mx.array(prompt), loaded.model, max_tokens=TOKENS, logits_processors=[no_end(loaded)])
    return tuple(int(token) for token, _ in steps)


@pytest.mark.parametrize("policy", ["full", "paged"])
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scaled_rope_answers_alone_and_in_a_ragged_batch_on_the_decoder_thread(
    architecture: str, rope_type: str, policy: str, loaded_elsewhere: Callable[[str, str], tuple[LoadedModel, Answers]]
) -> None:
    if (architecture, rope_type) in UNSUPPORTED:
        pytest.skip(UNSUPPORTED[architecture, rope_type])
    loaded, wanted = loaded_elsewhere(architecture, rope_type)
    with Decoder(loaded, policy) as decoder:
        never_ends = [no_end(loaded)]
        alone = decoder.generate(PROMPTS[0], max_tokens=TOKENS, logits_processors=never_ends)
    with Decoder(loaded, policy) as decoder:
        streams = [decoder.submit(prompt, max_tokens=TOKENS, logits_processors=never_ends) for prompt in PROMPTS]
        together = [stream.result().tokens for stream in streams]
    assert [alone.tokens, *together] == [wanted[0], *wanted]


def test_hand_built_model_runs_on_another_thread_than_the_one_that_built_it(tmp_path: Path) -> None:
    folder = tmp_path / "gpt-oss"
    write_recipe(scaled_recipe("gpt-oss", "yarn"), folder)

    def build() -> LoadedModel:
        model, _ = load_model(folder)
        tokenizer = SimpleNamespace(eos_token_ids=[2], vocab_size=261)
        return LoadedModel(model, tokenizer, "hand-built", folder, "float32", len(model.layers))

    with ThreadPoolExecutor(1) as thread:
        loaded = thread.submit(build).result()
    with Decoder(loaded, "full") as decoder:
        assert len(decoder.generate(PROMPTS[0], max_tokens=TOKENS, logits_processors=[no_end(loaded)]).tokens) == TOKENS


@pytest.mark.parametrize(
    ("architecture", "rope_type"), [("gpt-oss", "yarn"), ("olmo3", "yarn"), ("exaone4", "llama3"), ("gemma3", "llama3")]
)
def test_a_server_answers_the_first_request_of_a_model_with_scaled_rope(
    architecture: str, rope_type: str, tmp_path: Path
) -> None:
    write_recipe(scaled_recipe(architecture, rope_type), tmp_path / "model")
    with Local("paged", tmp_path / "model") as server:
        for text in ("first", "second"):
            answer = server.post("/v1/completions", {"prompt": text, "max_tokens": 3, "temperature": 0})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] > 0
