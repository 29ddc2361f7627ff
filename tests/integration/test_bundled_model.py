"""The bundled model: loads with plain mlx-lm and with transformers, calls tools, and retrieves."""

from __future__ import annotations

from statistics import mean

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from kvlab.models import LoadedModel, bundled_path
from kvlab.workloads import WorkloadRequest, load_workload

LARGEST = 12_000_000  # bytes in the repository


def answer(model: LoadedModel, request: WorkloadRequest) -> str:
    """What plain mlx-lm generates, greedily."""
    prompt = model.render(request.messages, request.tools)
    return mlx_lm.generate(model.model, model.tokenizer, prompt, max_tokens=request.max_tokens)


def scores(model: LoadedModel, requests: list[WorkloadRequest], metric: str = "accuracy") -> float:
    return mean(request.grade(answer(model, request))[metric] for request in requests)


def test_size_and_files() -> None:
    folder = bundled_path()
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"generation_config.json", "chat_template.jinja", "provenance.json"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST


def test_loads_with_plain_mlx_lm() -> None:
    model, tokenizer = mlx_lm.load(str(bundled_path()))
    assert tokenizer.has_tool_calling
    assert tokenizer.eos_token_ids == {tokenizer.encode("<|im_end|>")[0]}
    assert model.layers[0].self_attn.head_dim >= 64


def test_transformers_gives_the_same_logits() -> None:
    torch = pytest.importorskip("torch", reason="torch is only needed for training")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(bundled_path())
    their_tokenizer = AutoTokenizer.from_pretrained(bundled_path())
    ours, our_tokenizer = mlx_lm.load(str(bundled_path()))
    text = "The badge of @mira is #482. The desk of @tolu is #007. What is the badge of @mira?"
    ids = our_tokenizer.encode(text)
    assert their_tokenizer(text)["input_ids"] == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(np.array(ours(mx.array([ids]))), expected, atol=1e-2, rtol=1e-3)


def test_tokenizer_round_trips_any_text_and_keeps_names_and_values_whole(bundled: LoadedModel) -> None:
    for text in ("def f(x):\n    return x  # 12345\n", "naïve café, 日本語 🙂", ' {"a": [1, 2]}'):
        assert bundled.decode(bundled.encode(text)) == text
    (name,), (value,) = bundled.encode("mira"), bundled.encode("482")
    for text in (
        "The desk of @mira is #482.",
        "Set it for @mira to #482.",
        '{"desk": {"@ven": "#1", "@mira": "#482"}}',
    ):
        ids = bundled.encode(text)
        assert ids.index(value) - ids.index(name) == 3  # prose and JSON alike


def test_its_tool_calls_are_read_by_the_parser_of_mlx_lm(bundled: LoadedModel) -> None:
    request = load_workload("agent", seed=11).requests()[0]
    text = answer(bundled, request)
    start, end = bundled.tokenizer.tool_call_start, bundled.tokenizer.tool_call_end
    assert text.startswith(start) and text.rstrip().endswith(end)
    call = bundled.tokenizer.tool_parser(text.strip().removeprefix(start).removesuffix(end), None)
    assert call["name"] in {tool["function"]["name"] for tool in request.tools}
    assert set(call["arguments"]) >= {"handle"}


def test_template_takes_every_shape_of_message(bundled: LoadedModel) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    as_dict = {"id": "2", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Two calls, please."}]},
        {"role": "assistant", "content": None, "tool_calls": [call, as_dict]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "tool", "tool_call_id": "2", "content": "3"},
    ]
    text = bundled.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.count('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>') == 2
    assert text.count("<|im_start|>user") == 2 and text.count("<tool_response>") == 2
    assert "Two calls, please." in text and "None" not in text


@pytest.mark.parametrize(("tokens", "n", "least"), [(500, 10, 0.9), (1500, 10, 0.9), (4000, 4, 0.75)])
def test_retrieval(tokens: int, n: int, least: float, bundled: LoadedModel) -> None:
    assert scores(bundled, load_workload("retrieval", n=n, seed=12, tokens=tokens).requests()) >= least


def test_chat(bundled: LoadedModel) -> None:
    requests = [r for r in load_workload("chat", n=3, seed=13).requests() if r.kind == "recall"]
    assert scores(bundled, requests) >= 0.9


def test_agent(bundled: LoadedModel) -> None:
    requests = load_workload("agent", turns=8, seed=14).requests()
    calls = [r for r in requests if r.kind == "call"]
    assert scores(bundled, calls, "tool_call") >= 0.95
    assert scores(bundled, calls, "argument") >= 0.9
    assert scores(bundled, [r for r in requests if r.kind != "call"]) >= 0.85
