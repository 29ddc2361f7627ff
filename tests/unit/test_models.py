"""Loading models, and the fingerprint that keys their KV."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest

from kvlab import models
from kvlab.errors import ModelError
from kvlab.models import LoadedModel, ModelSource, load, with_adapter
from kvlab.server.notebook import models_by_name, served_models, with_adapters
from tests.helpers import random_model, random_model_folder

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def test_random_weights_answer_by_all_of_the_context(random_weights: LoadedModel) -> None:
    from mlx_lm.generate import generate_step

    ids = random_weights.encode("a prompt of some length, whose first letters matter too")
    other = [ids[0] + 1, *ids[1:]]
    first, second = (
        [token for token, _ in generate_step(mx.array(prompt), random_weights.model, max_tokens=12)]
        for prompt in (ids, other)
    )
    assert first != second
    assert len(set(first)) > 2


def test_loaded_model_describes_itself(qwen3: LoadedModel) -> None:
    assert (qwen3.dtype, qwen3.n_layers, qwen3.eos) == ("float32", 2, frozenset({2}))
    assert qwen3.name == qwen3.path.name
    assert qwen3.decode(qwen3.encode("hello <|im_end|> world")) == "hello <|im_end|> world"


def test_context_length_is_what_the_config_says(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path / "a", max_position_embeddings=512)
    assert load(folder).context_length == 512
    nested = {"text_config": {"max_position_embeddings": 77}}
    (folder / "config.json").write_text(json.dumps(nested))
    assert replace(load(), path=folder).context_length == 77
    assert replace(load(), path=tmp_path).context_length == load().context_length, "without a file, the model's own"


def test_half_precision_becomes_float32_on_the_cpu_only_when_not_asked(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path, dtype="bfloat16")
    by_default = "float32" if mx.default_device().type == mx.DeviceType.cpu else "bfloat16"
    assert load(folder).dtype == by_default
    asked = load(folder, dtype="bfloat16")
    assert asked.dtype == "bfloat16"
    assert asked.model.model.layers[0].self_attn.q_proj.weight.dtype == mx.bfloat16
    with pytest.raises(ModelError, match="float32, float16, bfloat16"):
        load(folder, dtype="int4")


def test_quantized_model_computes_in_the_dtype_of_its_scales(tmp_path: Path) -> None:
    import mlx_lm
    from mlx_lm.utils import quantize_model, save_model

    source = random_model_folder("qwen3", tmp_path / "source", dtype="bfloat16")
    network, _, config = mlx_lm.load(str(source), return_config=True)
    network, config = quantize_model(network, config, 64, 4)
    target = tmp_path / "q4"
    shutil.copytree(source, target)
    (target / "model.safetensors").unlink()
    save_model(target, network)
    (target / "config.json").write_text(json.dumps(config))
    quantized = load(target)
    assert quantized.dtype == ("float32" if mx.default_device().type == mx.DeviceType.cpu else "bfloat16")
    assert quantized.model(mx.array([[5, 6, 7]])).shape == (1, 3, 261)
    assert quantized.fingerprint != load(source).fingerprint


def test_render_takes_openai_messages(qwen3: LoadedModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]
    text = qwen3.decode(qwen3.render(messages, [TOOL]))
    assert '"name": "look"' in text
    assert '{"name": "look", "arguments": {"at": "é"}}' in text
    assert "None" not in text
    assert text.endswith("<|im_start|>assistant\n")
    assert not qwen3.decode(qwen3.render(messages, generation=False)).endswith("assistant\n")
    assert call["function"]["arguments"] == '{"at": "é"}', "the caller's messages are left as they were"


def test_render_extends_a_conversation_by_tokens(qwen3: LoadedModel) -> None:
    messages = [{"role": "user", "content": "one"}]
    first = qwen3.render(messages)
    messages += [{"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    assert qwen3.render(messages)[: len(first)] == first


def test_render_without_template_says_so(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no chat template"):
        load(folder).render([{"role": "user", "content": "hi"}])


def test_template_that_refuses_is_a_model_error(qwen3: LoadedModel) -> None:
    with pytest.raises(ModelError, match="refuses this conversation"):
        qwen3.render([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nonesuch", "no model 'nonesuch'; give a folder, a Hugging Face id"),
        ("./no/such/folder", "no model './no/such/folder'"),
        ("some-org/some-model", "cannot load some-org/some-model from the Hugging Face hub"),
    ],
)
def test_missing_models_are_one_clear_line(model: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(model)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_model_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path)
    folder = random_model_folder("llama", tmp_path / "m")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the model in"):
        load(folder)


def test_unknown_architecture_is_a_model_error(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))
    with pytest.raises(ModelError, match="abacus"):
        load(folder)


def test_cut_weights_are_a_model_error(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot load the model in"):
        load(folder)


def test_bundled_model_is_the_default(bundled: LoadedModel) -> None:
    assert bundled.name == models.bundled_path().name
    assert bundled.fingerprint == load().fingerprint == load("tiny").fingerprint
    assert bundled.dtype == "float32"
    assert sum(file.stat().st_size for file in bundled.path.rglob("*") if file.is_file()) < 12e6


def test_models_of_one_seed_are_equal(tmp_path: Path) -> None:
    assert random_model("qwen3", tmp_path / "a").fingerprint == random_model("qwen3", tmp_path / "b").fingerprint


# -- what mlx_lm.load returns -----------------------------------------------------------------------------------------


def test_load_takes_what_mlx_lm_load_returns(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path / "mine", dtype="bfloat16")
    pair = mlx_lm.load(str(folder))
    loaded = load(pair)
    assert (loaded.name, loaded.path, loaded.argument) == ("mine", folder, str(folder))
    assert (loaded.dtype, loaded.n_layers, loaded.context_length) == ("bfloat16", 2, 32768)
    assert loaded.model is pair[0]
    assert loaded.fingerprint == load(folder, dtype="bfloat16").fingerprint
    assert load(mlx_lm.load(str(folder), return_config=True)).fingerprint == loaded.fingerprint
    assert load(loaded) is loaded


def test_a_pair_of_the_hubs_cache_has_the_hubs_name(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path / "models--org--some-model" / "snapshots" / "abc")
    loaded = load(mlx_lm.load(str(folder)))
    assert (loaded.name, loaded.argument) == ("org/some-model", "org/some-model")


def test_a_model_changed_after_mlx_lm_loaded_it_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    network, tokenizer = mlx_lm.load(str(folder))
    nn.quantize(network, 32, 4)
    assert load((network, tokenizer)).fingerprint != load(folder).fingerprint


def test_loaded_models_are_not_loaded_otherwise(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path)
    for model in (mlx_lm.load(str(folder)), load(folder)):
        for option in ({"dtype": "float16"}, {"adapter": "a"}, {"dequantize": True}):
            with pytest.raises(ModelError, match="loaded already"):
                load(model, **option)
    with pytest.raises(ModelError, match="loaded already"):
        with_adapter(mlx_lm.load(str(folder)), "a")


@pytest.mark.parametrize("wrong", [(), (1,), (1, 2), (nn.Linear(2, 2), "a"), ("a", "b", "c", "d")])
def test_tuples_that_are_no_model_say_what_to_give(wrong: tuple[object, ...]) -> None:
    with pytest.raises(ModelError, match="give what mlx_lm.load returns"):
        load(wrong)


def test_a_server_names_models_as_they_are_loaded(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path / "some.model")
    file = tmp_path / "some-model.Q8_0.gguf"
    file.write_bytes(b"GGUF")
    sources = [str(folder), str(file), "smollm2-135m", "org/name", ModelSource(str(file), dtype="float16")]
    assert [list(models_by_name([source]))[0] for source in sources] == [
        "some.model",
        "some-model.Q8_0",
        "smollm2-135m",
        "org/name",
        "some-model.Q8_0",
    ]
    assert list(served_models(mlx_lm.load(str(folder)))) == ["some.model"]
    assert with_adapters(["a"], [], "float16") == [ModelSource("a", dtype="float16")]
    assert with_adapters(["a"], ["none"], "float16") == [ModelSource("a", dtype="float16")]
