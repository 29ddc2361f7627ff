"""Tokenizers out of GGUF files, against implementations of another kind: sentencepiece, and a BPE written plainly."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import regex
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvlab.errors import ModelError
from kvlab.models.gguf import GgufFile
from kvlab.models.gguf.vocabulary import build_tokenizer, end_tokens, tokenizer_config
from tests.gguf_kit import add_byte_level, close

TEXT = """It's the 24th of May 1998, and we'll walk 1,234 steps; they've said so, don't you think? I'M SURE.
    def f(x):\r\n\t\treturn   x ** 2  # später: être, naïve, 東京へ行く, Привет мир, ١٢٣, ½ ² 🙂👩‍👩‍👧
hello hello hello hellohello worlds wordy world-wide 1000000 2024-05-17T12:00
"""
ALPHABET = "abehlotw'sLMDTREV 1234567890\t\n\r.,;-_()#éßñ東京へмиП١²½🙂\u200d\u00a0\u3000e\u0301"
texts = st.one_of(
    st.text(ALPHABET, max_size=60), st.text(max_size=30), st.lists(st.sampled_from(TEXT.split())).map(" ".join)
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo>"]

# What each name stands for, in words of the regex library; digits of smollm are set apart before all else.
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
REST = [r"\s+(?!\S)", r"\s+"]
GPT2 = "|".join([*CONTRACTIONS, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", *REST])


def modern(numbers: str) -> str:
    letters = r"[^\r\n\p{L}\p{N}]?\p{L}+"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    return "|".join([f"(?i:{'|'.join(CONTRACTIONS)})", letters, numbers, others, r"\s*[\r\n]+", *REST])


PATTERNS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}|[^\p{N}]+", GPT2],
    "llama-bpe": [modern(r"\p{N}{1,3}")],
    "qwen2": [modern(r"\p{N}")],
}


def plain_bpe(text: str, patterns: list[str], ranks: dict[tuple[str, str], int], whole: set[str]) -> list[str]:
    """Byte-level BPE as its authors describe it: again and again the pair of the lowest rank, from the left."""
    words = [text]
    for pattern in patterns:
        words = [word for part in words for word in regex.findall(pattern, part)]
    letters = bytes_to_letters()
    made: list[str] = []
    for word in words:
        parts = [letters[byte] for byte in word.encode()]
        if "".join(parts) in whole:
            made.append("".join(parts))
            continue
        while len(parts) > 1:
            rank, at = min(
                (ranks.get(pair, 1 << 30), at) for at, pair in enumerate(zip(parts, parts[1:], strict=False))
            )
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        made += parts
    return made


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's printable letter of every byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


@pytest.fixture(scope="module")
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges that were trained on TEXT, with special tokens before and one token that no merge makes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=letters, special_tokens=SPECIAL, show_progress=False)
    trained.train_from_iterator([TEXT] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    return [*tokens, "whole", "<own>"], merges


@pytest.fixture(scope="module")
def tokenizer_of(byte_level: tuple[list[str], list[str]], tmp_path_factory: Any) -> Callable[..., GgufFile]:
    """Writes the vocabulary to a file with this way of cutting words."""

    def make(pre: str, **metadata: Any) -> GgufFile:
        path = tmp_path_factory.mktemp(pre) / "tokenizer.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        tokens, merges = byte_level
        kinds = [3 if token in SPECIAL else 4 if token == "<own>" else 1 for token in tokens]
        add_byte_level(writer, tokens, kinds, merges, pre=pre)
        writer.add_bos_token_id(1)
        for key, value in metadata.items():
            add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
            add(f"tokenizer.ggml.{key}", value)
        close(writer)
        return GgufFile.open(path)

    return make


@pytest.fixture(scope="module", params=list(PATTERNS))
def cut_as(request: Any, tokenizer_of: Any) -> tuple[str, Tokenizer]:
    return request.param, build_tokenizer(tokenizer_of(request.param))


@settings(max_examples=150)
@given(text=texts)
@example(text=TEXT)
@example(text="whole holew 12345678 <own>")
@example(text="  \n\n   x\u00a0\u00a0y\r\n\r\n 's 'LL I'Ve")
def test_byte_level_tokens_are_those_of_a_plain_bpe(
    text: str, cut_as: tuple[str, Tokenizer], byte_level: tuple[list[str], list[str]]
) -> None:
    name, tokenizer = cut_as
    if any(special in text for special in (*SPECIAL, "<own>")):
        text = text.replace("<", "")
    tokens, merges = byte_level
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    given = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    wanted = plain_bpe(given, PATTERNS[name], ranks, set(tokens) if name == "llama-bpe" else set())
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert encoded.tokens == wanted
    assert encoded.ids == [tokens.index(token) for token in wanted]
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == given


def test_control_tokens_and_own_tokens_are_found_as_wholes(tokenizer_of: Any, byte_level: Any) -> None:
    tokenizer = build_tokenizer(tokenizer_of("smollm"))
    tokens, _ = byte_level
    text = "a<|im_start|>b<own>c<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert [tokens[at] for at in ids] == ["a", "<|im_start|>", "b", "<own>", "c", "<|im_end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<own>c"


@pytest.mark.parametrize(
    ("pre", "metadata", "first"),
    [
        ("llama-bpe", {}, [1]),
        ("smollm", {}, []),
        ("qwen2", {}, []),
        ("llama-bpe", {"add_bos_token": False}, []),
        ("qwen2", {"add_bos_token": True}, [1]),
    ],
)
def test_the_token_of_the_beginning_is_added_where_the_file_or_its_kind_says_so(
    pre: str, metadata: dict[str, Any], first: list[int], tokenizer_of: Any
) -> None:
    tokenizer = build_tokenizer(tokenizer_of(pre, **metadata))
    ids = tokenizer.encode("hello").ids
    assert ids[: len(first)] == first
    assert ids[len(first) :] == tokenizer.encode("hello", add_special_tokens=False).ids


def test_answers_end_at_what_the_file_names_and_at_usual_ends_of_a_turn(tokenizer_of: Any) -> None:
    assert end_tokens(tokenizer_of("smollm")) == [2]
    assert end_tokens(tokenizer_of("smollm", eot_token_id=3)) == [2, 3]


def test_special_tokens_and_chat_template_come_from_the_file(tokenizer_of: Any) -> None:
    config = tokenizer_config(tokenizer_of("qwen2", unknown_token_id=3))
    assert (config["bos_token"], config["eos_token"], config["pad_token"], config["unk_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<repo>",
    )
    assert "messages" in config["chat_template"]


def test_several_chat_templates_are_all_there(tokenizer_of: Any) -> None:
    file = tokenizer_of("qwen2")
    more = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "with tools"}
    config = tokenizer_config(GgufFile(file.path, {**file.metadata, **more}, {}, np.zeros(0, np.uint8)))
    assert [one["name"] for one in config["chat_template"]] == ["default", "tool_use"]
    without = {key: value for key, value in file.metadata.items() if key != "tokenizer.chat_template"}
    assert "chat_template" not in tokenizer_config(GgufFile(file.path, without, {}, np.zeros(0, np.uint8)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.pre": "bloom"}, "cuts text into words as 'bloom' does; kvlab knows llama-bpe"),
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of the kind 'bert'"),
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.tokens": None}, "has no vocabulary"),
        ({"tokenizer.ggml.merges": ["no thing"]}, "a vocabulary that is not whole"),
        ({"tokenizer.ggml.model": "llama"}, "0 scores for"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_refused(change: dict[str, Any], says: str, tokenizer_of: Any) -> None:
    file = tokenizer_of("smollm")
    metadata = {key: value for key, value in (dict(file.metadata) | change).items() if value is not None}
    with pytest.raises(ModelError, match=says):
        build_tokenizer(GgufFile(file.path, metadata, {}, np.zeros(0, np.uint8)))


# -- sentencepiece ----------------------------------------------------------------------------------------------------

OWN = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "[multimodal]"]
CONTROL = ["<mask>", "<start_of_turn>", "<end_of_turn>"]


@pytest.fixture(scope="module")
def pieces() -> Callable[[bool], sentencepiece.SentencePieceProcessor]:
    """A model that sentencepiece trained, as Gemma's is (no space in front) or Llama's (one)."""

    def make(space: bool) -> sentencepiece.SentencePieceProcessor:
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.splitlines() * 3),
            model_writer=out,
            vocab_size=480,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=space,
            character_coverage=0.98,
            user_defined_symbols=[] if space else OWN,  # Llama has none
            control_symbols=CONTROL,
            minloglevel=2,
        )
        return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())

    return make


@pytest.fixture(scope="module", params=[False, True], ids=["gemma", "llama"])
def both(request: Any, pieces: Any, tmp_path_factory: Any) -> tuple[sentencepiece.SentencePieceProcessor, GgufFile]:
    processor = pieces(request.param)
    count = processor.get_piece_size()
    kinds = []
    for at in range(count):
        piece = processor.id_to_piece(at)
        kinds.append(
            2 if processor.is_unknown(at) else 3 if processor.is_control(at) else 6 if processor.is_byte(at)
            else 5 if processor.is_unused(at) else 4 if piece in OWN else 1
        )  # fmt: skip
    path = tmp_path_factory.mktemp("pieces") / "pieces.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(64)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(at) for at in range(count)])
    writer.add_token_scores([processor.get_score(at) for at in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    writer.add_add_space_prefix(request.param)
    close(writer)
    return processor, GgufFile.open(path)


@pytest.fixture(scope="module")
def made(both: Any) -> Tokenizer:
    return build_tokenizer(both[1])


@settings(max_examples=200)
@given(text=texts)
@example(text=TEXT)
@example(text="a  b   c    d\n\n\n\n\ne<table>f [multimodal]")
@example(text=" leading, and trailing ")
def test_pieces_are_those_of_sentencepiece(text: str, both: Any, made: Tokenizer) -> None:
    processor, _ = both
    text = text.replace("\0", "")  # which ends a text in sentencepiece's own reading
    assert made.encode(text, add_special_tokens=False).ids == processor.encode(text)


@settings(max_examples=80)
@given(text=texts)
def test_pieces_are_decoded_to_their_text(text: str, both: Any, made: Tokenizer) -> None:
    ids = made.encode(text, add_special_tokens=False).ids
    assert made.decode(ids, skip_special_tokens=False) == text.replace("▁", " ")


def test_a_beginning_is_added_and_turns_end(both: Any, made: Tokenizer) -> None:
    processor, file = both
    assert made.encode("hello").ids == [processor.bos_id(), *processor.encode("hello")]
    assert end_tokens(file) == [processor.eos_id(), processor.piece_to_id("<end_of_turn>")]
    text = "<start_of_turn>hello<end_of_turn>"
    assert made.encode(text, add_special_tokens=False).tokens[0] == "<start_of_turn>"
    assert made.encode(text, add_special_tokens=False).tokens[-1] == "<end_of_turn>"


def test_a_folder_of_its_own_reads_the_same(both: Any, made: Tokenizer, tmp_path: Path) -> None:
    made.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(TEXT).ids == made.encode(TEXT).ids
