"""A model that was changed after loading never gets KV that it would not have computed itself."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import qwen3

from kvlab.bench.request_times import no_end
from kvlab.caches import factory
from kvlab.decoder import Decoder
from kvlab.errors import ModelError
from kvlab.models import LoadedModel, load
from tests.architectures import RECIPES, write_recipe
from tests.helpers import random_model_folder
from tests.model_changes import CHANGES, Doubled, add_adapter

LENGTH, TOKENS = 150, 10
PROMPT = [5 + (7 * i) % 240 for i in range(LENGTH)]
OTHER = [*PROMPT[:100], *(5 + (11 * i) % 240 for i in range(30))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_folder("llama", tmp_path_factory.mktemp("llama"))


def answer(decoder: Decoder, prompt: Sequence[int] = PROMPT) -> Any:
    return decoder.generate(prompt, max_tokens=TOKENS, logits_processors=[no_end(decoder.loaded)])


def uncached(loaded: LoadedModel, prompt: Sequence[int] = PROMPT, tokens: int = TOKENS) -> tuple[int, ...]:
    """What mlx-lm answers with the model as it is now."""
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(list(prompt)), loaded.model, max_tokens=tokens, logits_processors=[no_end(loaded)])
    return tuple(int(token) for token, _ in steps)


def test_a_store_filled_with_an_adapter_serves_nothing_to_the_clean_model_and_the_other_way(
    folder: Path, tmp_path: Path
) -> None:
    policy = f"tiered:dir={tmp_path}"
    adapted, clean = load(folder), load(folder)
    add_adapter(adapted.model)
    wanted = {loaded: uncached(loaded) for loaded in (adapted, clean)}
    assert wanted[adapted] != wanted[clean]
    for loaded in (adapted, clean):
        with Decoder(loaded, policy) as decoder:
            first = answer(decoder)
            assert (first.tokens, first.cached_tokens, first.miss) == (wanted[loaded], 0, "never_seen")
    for loaded in (adapted, clean):  # another process would load it again
        again = load(folder)
        if loaded is adapted:
            add_adapter(again.model)
        with Decoder(again, policy) as decoder:
            second = answer(decoder)
            assert second.tokens == wanted[loaded]
            assert second.cached_tokens > LENGTH - 40


POLICIES = [
    *(("tiered", change) for change in CHANGES),
    *(("full", change) for change in ("LoRA", "last layer removed", "layer replaced", "method of a class patched")),
    *(("paged", change) for change in ("LoRA", "quantize", "one element written in place")),
    *(("quantized:bits=8|paged", change) for change in ("LoRA", "last layer removed", "set_dtype")),
]


@pytest.mark.parametrize(("policy", "change"), POLICIES)
def test_an_open_decoder_answers_as_the_model_is_now(policy: str, change: str, folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    with Decoder(loaded, f"{policy}:dir={tmp_path}" if policy == "tiered" else policy) as decoder:
        before = answer(decoder)
        undo = CHANGES[change](loaded.model)
        try:
            changed = answer(decoder)
            assert (changed.cached_tokens, changed.miss) == (0, "never_seen" if policy != "full" else "")
            with Decoder(
                loaded, policy.replace("tiered", "full").replace("|paged", "").replace("paged", "full")
            ) as alone:
                assert changed.tokens == answer(alone).tokens
            if policy != "quantized:bits=8|paged" and change != "set_dtype":  # which batches in other sums
                assert changed.tokens == uncached(loaded)
            assert answer(decoder, OTHER).cached_tokens == (100 if policy != "full" else 0)
        finally:
            undo()
        after = answer(decoder)
        assert after.tokens == before.tokens
        assert after.cached_tokens == (LENGTH - 1 if policy != "full" else 0)


@pytest.mark.parametrize("policy", ["paged", "full"])
@pytest.mark.parametrize("at", [1, 2, 6])
@pytest.mark.parametrize("undone", [False, True])
def test_running_requests_continue_from_their_tokens_with_the_changed_model(
    undone: bool, at: int, policy: str, folder: Path
) -> None:
    """The change comes between two steps; KV of both kinds is in no answer and in no store."""
    loaded, plain = load(folder), load(folder)
    changed = load(folder)
    add_adapter(changed.model)
    undo: list[Any] = []
    never_ends, calls = no_end(loaded), 0

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        if calls == at:
            add_adapter(loaded.model)
        if undone and calls == at + 3:
            from mlx_lm.tuner.utils import remove_lora_layers

            remove_lora_layers(loaded.model)
        return never_ends(tokens, logits)

    with Decoder(loaded, policy) as decoder:
        stream = decoder.submit(PROMPT, max_tokens=TOKENS, logits_processors=[processor])
        beside = decoder.submit(OTHER, max_tokens=TOKENS, logits_processors=[never_ends])
        got, said = stream.result().tokens, tuple(stream)
        assert got == said and len(got) == TOKENS
        if not undone:
            assert any(
                got == uncached(plain, tokens=n)[:n] + uncached(changed, [*PROMPT, *got[:n]], TOKENS - n)
                for n in range(1, TOKENS)
            )
        assert len(beside.result().tokens) == TOKENS
        now = plain if undone else changed
        for prompt in (PROMPT, OTHER, [*PROMPT, *got, 9]):
            assert answer(decoder, prompt).tokens == uncached(now, prompt)
    assert not undo


def test_a_change_that_ends_the_request_at_its_first_token_is_still_an_answer(folder: Path) -> None:
    loaded = load(folder)
    never_ends = no_end(loaded)

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        add_adapter(loaded.model)
        return never_ends(tokens, logits)

    with Decoder(loaded, "paged") as decoder:
        done = decoder.generate(PROMPT, max_tokens=1, logits_processors=[processor])
    assert (len(done.tokens), done.finish_reason) == (1, "length")


def test_a_change_that_is_not_evaluated_is_evaluated_by_the_thread_that_submits(folder: Path) -> None:
    loaded = load(folder)
    with Decoder(loaded, "paged") as decoder:
        answer(decoder)
        layer = loaded.model.layers[0].self_attn.q_proj
        layer.weight = layer.weight * 1.7
        assert answer(decoder).tokens == uncached(loaded)


def test_a_model_that_cannot_be_used_any_more_fails_requests_until_it_is_mended(folder: Path) -> None:
    loaded = load(folder)
    layer = loaded.model.layers[0].self_attn.q_proj
    right = layer.weight
    with Decoder(loaded, "paged") as decoder:
        first = answer(decoder)
        layer.weight = mx.zeros((3, 3))
        for _ in range(2):
            with pytest.raises((ModelError, ValueError), match="shape|was changed"):
                answer(decoder)
        layer.weight = right
        again = answer(decoder)
    assert again.tokens == first.tokens
    assert again.cached_tokens == LENGTH - 1


def test_a_model_that_changes_itself_ends_with_an_error_that_says_so(folder: Path) -> None:
    loaded = load(folder)
    mlp = loaded.model.layers[0].mlp
    plain = type(mlp)

    class Counting(plain):  # type: ignore[misc,valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            self.calls = getattr(self, "calls", 0) + 1
            return super().__call__(x)

    mlp.__class__ = Counting
    with Decoder(loaded, "paged") as decoder, pytest.raises(ModelError, match="changes its own"):
        answer(decoder)


def test_a_model_that_assigns_equal_arrays_whenever_it_computes_is_the_same_model(folder: Path) -> None:
    """Gemma 3n clips its coefficients so: they are arrays of the decoder's thread, perhaps not evaluated yet."""
    loaded = load(folder)
    norm = loaded.model.layers[0].input_layernorm
    plain = type(norm)

    class Clipping(plain):  # type: ignore[misc,valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            self.weight = mx.clip(self.weight, -1e4, 1e4)
            return super().__call__(x)

    norm.__class__ = Clipping
    with Decoder(loaded, "paged") as decoder:
        done = [decoder.submit(PROMPT, max_tokens=8) for _ in range(4)]
        tokens = {stream.result().tokens for stream in done}
        again = answer(decoder)
    assert len(tokens) == 1
    assert again.cached_tokens == LENGTH - 1


@pytest.mark.parametrize("name", ["gemma3", "qwen3-next", "deepseek-v3"])
def test_checkpoints_and_latent_rows_are_kept_apart_as_well(name: str, tmp_path: Path) -> None:
    write_recipe(RECIPES[name], tmp_path / "model")
    policy = f"tiered:dir={tmp_path / 'store'}"
    loaded = load(tmp_path / "model")
    with Decoder(loaded, policy) as decoder:
        before = answer(decoder)
        head = loaded.model.layers[0].mlp
        weight = next(layer for _, layer in head.named_modules() if "weight" in layer)
        right = weight.weight
        weight.weight = right * 3
        mx.eval(weight.weight)
        changed = answer(decoder)
        assert changed.cached_tokens == 0 and changed.tokens == uncached(loaded)
        weight.weight = right
    with Decoder(load(tmp_path / "model"), policy) as decoder:
        after = answer(decoder)
        assert after.tokens == before.tokens and after.cached_tokens > 0


def test_trials_are_repeated_for_a_changed_model_and_only_then(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(folder)
    tried: list[Any] = []
    plain = factory.try_batch
    monkeypatch.setattr(factory, "try_batch", lambda *arguments: tried.append(1) or plain(*arguments))
    for _ in range(2):
        with Decoder(loaded, "paged") as decoder:
            answer(decoder)
    once = len(tried)
    assert once > 0
    mlp = loaded.model.layers[0].mlp
    mlp.__class__ = Doubled
    with Decoder(loaded, "paged") as decoder:
        assert answer(decoder).tokens == uncached(loaded)
    assert len(tried) == 2 * once


def test_attention_of_a_file_that_was_not_there_before_is_hooked(folder: Path) -> None:
    """A layer that is replaced by one of another file calls attention by a name of that file."""
    loaded = load(folder)
    with Decoder(loaded, "quantized:bits=8") as decoder:
        before = answer(decoder)
    block = loaded.model.layers[0]
    old = block.self_attn
    block.self_attn = qwen3.Attention(qwen3_arguments(loaded.model.args))
    block.self_attn.update({name: old[name].parameters() for name in ("q_proj", "k_proj", "v_proj", "o_proj")})
    mx.eval(loaded.model.parameters())
    with Decoder(loaded, "quantized:bits=8") as decoder:
        after = answer(decoder)
    with Decoder(loaded, "full") as decoder:
        assert after.tokens[0] == answer(decoder).tokens[0]
    assert after.tokens != before.tokens


def qwen3_arguments(args: Any) -> Any:
    names = inspect.signature(qwen3.ModelArgs).parameters
    return qwen3.ModelArgs.from_dict({**{name: getattr(args, name, None) for name in names}, "model_type": "qwen3"})
