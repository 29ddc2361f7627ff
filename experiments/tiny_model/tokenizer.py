"""The bundled tokenizer: byte-level BPE on generated text, every name and every three-digit number one token.

Pieces are cut as in Llama 3 (letters with a leading space, up to three digits, punctuation with a leading space).
Merges are learnt on words alone; names, numbers and the words of the workloads join the vocabulary whole, which
`ignore_merges` permits without intermediate tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from render import TEMPLATE, render
from text import english
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from kvlab.workloads import load_workload
from kvlab.workloads.words import NAMES

VOCAB = 2304
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_MARKS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CORPUS_SEED = 10**6
_MARKS = re.compile("|".join(map(re.escape, (*SPECIAL, *TOOL_MARKS))))
# no merges are spent on these
_RANDOM = frozenset((*NAMES, *map(str, range(1000)), *(f"{n:03d}" for n in range(1000))))
PIECES = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"


def build() -> Tokenizer:
    """Trains the tokenizer; deterministic. Ids: bytes and merges, whole pieces, special tokens, tool marks."""
    pieces = Counter(piece for text in _workload_text() for piece in _split(text) if piece not in _RANDOM)
    frequent = [_byte_level(piece) for piece, count in sorted(pieces.items()) if count >= 4 and len(piece) > 1]
    whole = list(dict.fromkeys([*NAMES, *(f"{n:03d}" for n in range(1000)), *frequent]))

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    room = VOCAB - len(SPECIAL) - len(TOOL_MARKS)
    learnt = room - len(whole)
    while True:  # merges and whole pieces overlap: let the merges have what the overlap leaves
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = _pre_tokenizer()
        bpe.train_from_iterator(
            (_without_random(text) for text in (*_workload_text(), *english(Random(0)))),
            trainers.BpeTrainer(vocab_size=learnt, initial_alphabet=alphabet, show_progress=False),
        )
        model = json.loads(bpe.to_str())["model"]
        vocab = {token: index for index, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
        for token in whole:
            vocab.setdefault(token, len(vocab))
        if len(vocab) == room:
            break
        learnt += room - len(vocab)

    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TOOL_MARKS])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _workload_text() -> Iterator[str]:
    """Whole conversations of every workload as the template lays them out."""
    for spec, n in (("agent", 20), ("retrieval", 40), ("chat", 20)):
        last = {request.conversation: request for request in load_workload(spec, n=n, seed=CORPUS_SEED).requests()}
        for index, request in enumerate(last.values()):
            text = render((*request.messages, request.reference), request.tools if index < 10 else ())
            yield from _MARKS.split(text)


def _without_random(text: str) -> str:
    return "".join("0" if piece in _RANDOM else piece for piece in _split(text))


def _byte_level(piece: str) -> str:
    return "".join(token for token, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(piece))


def _split(text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizers.Split(Regex(PIECES), behavior="isolated").pre_tokenize_str(text)]
