"""From a GGUF file's vocabulary to a tokenizer of Hugging Face, which mlx-lm reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvlab.counts import counted
from kvlab.errors import ModelError
from kvlab.models.gguf.file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, by the numbers of GGUF."""

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
"""Control tokens that end an answer whether or not the file says so."""

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS_BY_LETTERS = (
    r"(?i:" + _CONTRACTIONS + r")|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _WORDS_BY_LETTERS % "{1,3}", _WORDS_BY_LETTERS % ""
_GPT2 = None
"""The words of GPT-2, which the tokenizers library has built in."""
WORDS: dict[str, tuple[str | None, bool]] = {
    "llama-bpe": (_LLAMA3, False),
    "llama3": (_LLAMA3, False),
    "llama-v3": (_LLAMA3, False),
    "qwen2": (_QWEN2, False),
    "deepseek-r1-qwen": (_QWEN2, False),
    "smollm": (_GPT2, True),
    "gpt-2": (_GPT2, False),
}
"""How text is cut into words by ``tokenizer.ggml.pre``: a pattern, and whether each digit is first set apart."""
WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""A word that is a token is that token, whatever its merges would give."""
NFC = frozenset({"qwen2", "deepseek-r1-qwen"})
"""Text is composed (Unicode NFC) first, as the authors' tokenizer does."""


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Make the tokenizer. Raises ModelError for a kind that is not known, and for a vocabulary that is not whole."""
    kind = file.metadata.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        what = "has no tokenizer" if kind is None else f"has a tokenizer of the kind {kind!r}"
        raise ModelError(f"{file.path} {what}; kvlab reads those of the kinds {' and '.join(makers)}")
    try:
        tokenizer = makers[kind](file)
    except ModelError:
        raise
    except Exception as error:  # the library raises plain exceptions for merges that do not fit
        raise ModelError(f"{file.path} has a vocabulary that is not whole: {error}; fetch the file again") from error
    _add_tokens(file, tokenizer)
    _add_beginning(file, tokenizer)
    return tokenizer


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """Return what belongs into ``tokenizer_config.json``: special tokens and chat template."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(file.number("context_length")),
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        at = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if at is not None and at < len(_tokens(file)):
            config[f"{role}_token"] = _tokens(file)[at]
    template = file.metadata.get("tokenizer.chat_template")
    if template:
        names = file.metadata.get("tokenizer.chat_templates", [])
        named = {name: file.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
        templates = [{"name": name, "template": text} for name, text in {"default": template, **named}.items() if text]
        config["chat_template"] = templates if len(templates) > 1 else template
    return config


def end_tokens(file: GgufFile) -> list[int]:
    """Return the tokens that end an answer: those the file names, and control tokens that usually end a turn."""
    said = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    usual = [at for at in _of_kind(file, CONTROL) if _tokens(file)[at] in END_OF_TURN]
    return list(dict.fromkeys(at for at in [*said, *usual] if at is not None))


def _byte_level(file: GgufFile) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = file.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if name not in WORDS:
        raise ModelError(
            f"{file.path} cuts text into words as {name!r} does; kvlab knows {', '.join(WORDS)}. Give the model as a "
            "folder or a hub id in MLX format"
        )
    pattern, single_digits = WORDS[name]
    pairs = [tuple(merge.split(" ", 1)) for merge in file.metadata.get("tokenizer.ggml.merges", [])]
    vocabulary = _vocabulary(file)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=name in WHOLE_WORDS_FIRST))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if name in NFC:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(file: GgufFile) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary, tokens = _vocabulary(file), _tokens(file)
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(_merges(file)),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=bool(_of_kind(file, BYTE)),
        )
    )
    begins_with_space = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if begins_with_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(file: GgufFile) -> Iterator[tuple[str, str]]:
    """Pairs of pieces that may become one, the best first: SentencePiece joins the pair whose piece scores highest."""
    tokens, scores = _tokens(file), file.metadata.get("tokenizer.ggml.scores", [])
    if len(scores) != len(tokens):
        raise ModelError(
            f"{file.path} has {len(scores)} scores for {counted(len(tokens), 'token')}; fetch the file again"
        )
    pieces = {tokens[at]: scores[at] for at in _of_kind(file, NORMAL)}
    order = sorted(pieces, key=lambda piece: -pieces[piece])
    for piece in order:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                yield left, right


def _add_tokens(file: GgufFile, tokenizer: Tokenizer) -> None:
    """Have control tokens and the user's tokens found as wholes, as their kinds say."""
    from tokenizers import AddedToken

    tokens = _tokens(file)
    is_spm = file.metadata.get("tokenizer.ggml.model") == "llama"
    special = [AddedToken(tokens[at], special=True, normalized=False) for at in _of_kind(file, CONTROL, UNKNOWN)]
    own = [AddedToken(tokens[at], special=False, normalized=is_spm) for at in _of_kind(file, USER_DEFINED)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(own)


def _add_beginning(file: GgufFile, tokenizer: Tokenizer) -> None:
    """Have the token of the beginning added where the file says so, or its kind usually does."""
    from tokenizers.processors import TemplateProcessing

    by_default = (
        file.metadata.get("tokenizer.ggml.model") == "llama"
        or file.metadata.get("tokenizer.ggml.pre") in WHOLE_WORDS_FIRST
    )
    at = file.metadata.get("tokenizer.ggml.bos_token_id")
    if at is not None and file.metadata.get("tokenizer.ggml.add_bos_token", by_default):
        token = _tokens(file)[at]
        tokenizer.post_processor = TemplateProcessing(
            single=[token, "$A"], pair=[token, "$A", token, "$B:1"], special_tokens=[(token, at)]
        )


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{file.path} has no vocabulary; give a file that has, or the model in MLX format")
    return tokens


def _vocabulary(file: GgufFile) -> dict[str, int]:
    made: dict[str, int] = {}
    for at, token in enumerate(_tokens(file)):
        made.setdefault(token, at)
    return made


def _of_kind(file: GgufFile, *kinds: int) -> list[int]:
    """The ids of all tokens of these kinds; without kinds in the file, all are normal."""
    found = file.metadata.get("tokenizer.ggml.token_type")
    if found is None:
        return list(range(len(_tokens(file)))) if NORMAL in kinds else []
    return [at for at, kind in enumerate(found) if kind in kinds]
