"""Log-probabilities name the bytes of their tokens, those of a character that is split over tokens too."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import tokenizer_utils
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvlab.models import LoadedModel
from kvlab.server.generation.token_bytes import TokenBytes, offsets, shown
from tests.server_kit import Local, chat

SPM_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def sentencepiece(folder: Path) -> Any:
    """A tokenizer in the manner of SentencePiece: spaces as letters, other characters as bytes."""
    texts = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "\n"]
    vocabulary = {text: i for i, text in enumerate(texts)}
    raw = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    raw.decoder = decoders.Sequence(SPM_DECODER)
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return tokenizer_utils.load(folder)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bundled.tokenizer if request.param == "byte-level" else sentencepiece(tmp_path_factory.mktemp("spm"))


TEXT = st.text(alphabet=st.one_of(st.sampled_from("ab \n☃漢🎉é"), st.characters(codec="utf-8")), max_size=12)


@given(text=TEXT)
@settings(max_examples=60)
def test_bytes_of_tokens_joined_are_the_text(tokenizer, text):
    """Class: any text, in vocabularies of both kinds."""
    of = TokenBytes(tokenizer).of
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(of, ids)) == tokenizer.decode(ids).encode()


def test_special_and_unknown_tokens_have_their_text(bundled):
    of = TokenBytes(bundled.tokenizer).of
    [end] = bundled.encode("<|im_end|>")
    assert (of(end), of(10**6), of(-1)) == (b"<|im_end|>", b"", b"")


def test_bytes_that_are_no_text_are_shown_in_hexadecimal():
    assert (shown(b"abc"), shown(b"\xe2\x98"), shown(b"\xe2\x98", "bytes:")) == ("abc", r"\xe2\x98", r"bytes:\xe2\x98")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert offsets([b"a", b"\xe2", b"\x98", b"\x83", b"b"], decoder, 4) == ([4, 5, 5, 5, 6], 7)


@pytest.mark.parametrize("stream", [False, True])
def test_server_reports_the_bytes_of_split_characters(bundled, stream):
    snowman = bundled.encode("☃🎉")
    assert len(snowman) > 2
    # The model is made to write nothing else, in any order: the bytes are told from the ids.
    bias = {str(token): 100 for token in snowman}
    body = chat("x", max_tokens=9, logit_bias=bias, logprobs=True, top_logprobs=3, stream=stream, temperature=1.0)
    of = TokenBytes(bundled.tokenizer).of
    with Local("full", bundled) as server:
        answer = server.post("/v1/chat/completions", body)
        plain = {"prompt": "x", "max_tokens": 9, "logit_bias": bias, "logprobs": 3, "temperature": 1.0}
        legacy = server.post("/v1/completions", plain).json()["choices"][0]["logprobs"]
    entries = logprobs_of(answer)
    assert len(entries) == 9
    allowed = [list(of(token)) for token in snowman]
    for entry in entries:
        assert entry["bytes"] in allowed
        assert entry["token"] == shown(bytes(entry["bytes"]))
        assert len({top["token"] for top in entry["top_logprobs"]}) == 3
    assert all(text in {shown(of(token), "bytes:") for token in snowman} for text in legacy["tokens"])
    assert all(len(top) == 3 for top in legacy["top_logprobs"])
    assert legacy["text_offset"] == sorted(legacy["text_offset"])


def logprobs_of(answer: Any) -> list[dict[str, Any]]:
    if not answer.text.startswith("data:"):
        return list(answer.json()["choices"][0]["logprobs"]["content"])
    chunks = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    return [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content", [])]
