"""A model of 12 MB that every server can read: SmolLM2's tokenizer and chat template, and replies that are known.

Which tokens a server finds in its cache depends on no weight. So a session of a hundred requests runs on two layers
of 64 dimensions, whose keys and values are computed as in any Llama, but add nothing: the last token alone decides what
comes next, and after each word comes the next one of a list. Such replies keep their tokens when they are sent back as
text, which those of a small real model often do not.

``attends=True`` makes a second one whose layers do add to what follows, so that wrong KV gives another reply.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import environments
import gguf
import numpy as np
from safetensors.numpy import save_file

from kvlab.models.fetching import models_path
from kvlab.models.gguf import GgufFile

TOKENIZER = "smollm2-135m"
TOKENIZER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME, ATTENDING = "word-chain", "word-chain-attending"
GGUF_FILE = "model.gguf"
TOKENIZER_ENTRIES = ("tokenizer.",)

LAYERS, WIDTH, CONTEXT = 2, 64, 8192
NORM_EPS, ROPE_BASE = 1e-5, 100_000.0
SHORTEST_WORD, LONGEST_WORD = 4, 8
SEED = 0

# The projections of a layer with their names in a GGUF file; those that add to the residual stream are zero.
PROJECTIONS = {
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
SILENT = ("self_attn.o_proj", "mlp.down_proj")
LOUD = 40.0
"""Factor on the same projections where they are not silent: attention over hundreds of random values is weak."""
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


SPACES = ("Ġ", "▁")
"""What stands for a space in a token: of a BPE over bytes, and of a SentencePiece model."""


def plain_words(vocabulary: Iterable[str]) -> list[str]:
    """Return the words that are one token each when a space stands before them."""
    plain = (token[1:] for token in vocabulary if token.startswith(SPACES))
    fit = (word for word in plain if word.isascii() and word.isalpha() and word.islower())
    return sorted(word for word in fit if SHORTEST_WORD <= len(word) <= LONGEST_WORD)


def chain(ids: Mapping[str, int]) -> dict[int, int]:
    """Return which token follows which: after a line the first word, after each word the next; others repeat."""
    known = [ids["Ċ"], *(ids[f"Ġ{word}"] for word in plain_words(ids))]
    return dict(zip(known, [*known[1:], known[0]], strict=True))


def word_chain(folder: Path | None = None, *, attends: bool = False) -> Path:
    """Return the folder that holds the model for MLX and as a GGUF file; it is made where it is not there yet."""
    target = environments.root(folder) / "models" / (ATTENDING if attends else NAME)
    if not (target / GGUF_FILE).is_file():
        target.mkdir(parents=True, exist_ok=True)
        source = models_path() / TOKENIZER
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, target / name)
        tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
        weights = _weights(tokenizer, () if attends else SILENT)
        save_file(weights, target / "model.safetensors", {"format": "mlx"})
        (target / "config.json").write_text(json.dumps(_config(len(weights["lm_head.weight"])), indent=1))
        _write_gguf(source / TOKENIZER_FILE, target / GGUF_FILE, weights)
    return target


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": WIDTH,
        "rms_norm_eps": NORM_EPS,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_BASE,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": [2],
        "torch_dtype": "float32",
    }


def chained_ends(tokenizer: dict[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return embeddings and head, ``[vocabulary, WIDTH]``: a token's embedding is the head of the one that follows."""
    ids = {**tokenizer["model"]["vocab"], **{added["content"]: added["id"] for added in tokenizer["added_tokens"]}}
    vocabulary = max(ids.values()) + 1
    random = np.random.default_rng(SEED)
    embeddings = random.standard_normal((vocabulary, WIDTH)).astype(np.float32)
    embeddings *= WIDTH**0.5 / np.linalg.norm(embeddings, axis=1, keepdims=True)
    after = np.arange(vocabulary)
    following = chain(tokenizer["model"]["vocab"])
    after[list(following)] = list(following.values())
    head = np.empty_like(embeddings)
    head[after] = embeddings
    return embeddings, head


def _weights(tokenizer: dict[str, Any], silent: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return float32 weights by their names in MLX; projections named ``silent`` are zero.

    Where all that add to the residual stream are, a word is followed by the next of the list, and a line by its first.
    """
    embeddings, head = chained_ends(tokenizer)
    random = np.random.default_rng(SEED)
    random.standard_normal(embeddings.shape)  # the numbers of the embeddings
    weights = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
    weights["model.norm.weight"] = np.ones(WIDTH, np.float32)
    for layer in range(LAYERS):
        for name in PROJECTIONS:
            matrix = random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
            weights[f"model.layers.{layer}.{name}.weight"] = matrix * (
                0 if name in silent else LOUD if name in SILENT else 1
            )
        for name in NORMS:
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(WIDTH, np.float32)
    return weights


@contextmanager
def written_whole(target: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """Give a writer of a GGUF file, which is there whole afterwards, or not at all."""
    begun = target.with_suffix(".part")
    writer = gguf.GGUFWriter(begun, architecture)
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    begun.replace(target)


def copied_metadata(source: Path, writer: gguf.GGUFWriter, beginnings: tuple[str, ...]) -> None:
    """Write the entries of another GGUF file whose names begin so, such as those of its tokenizer."""
    file, fields = GgufFile.open(source), gguf.GGUFReader(source).fields
    for key, value in file.metadata.items():
        if key.startswith(beginnings):
            kinds = fields[key].types
            writer.add_key_value(key, value, kinds[0], kinds[-1] if len(kinds) > 1 else None)


def _write_gguf(source: Path, target: Path, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write the weights with the tokenizer of another GGUF file."""
    with written_whole(target, "llama") as writer:
        copied_metadata(source, writer, TOKENIZER_ENTRIES)
        writer.add_name(NAME)
        writer.add_block_count(LAYERS)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(WIDTH)
        writer.add_head_count(1)
        writer.add_head_count_kv(1)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_rope_dimension_count(WIDTH)
        writer.add_layer_norm_rms_eps(NORM_EPS)
        writer.add_vocab_size(len(weights["lm_head.weight"]))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for name, array in weights.items():
            writer.add_tensor(_gguf_name(name), array)


def _gguf_name(name: str) -> str:
    """Return a tensor's name in a GGUF file.

    llama.cpp wants the rows of a Llama's q and k in another order; rows of random numbers have none to keep.
    """
    outside = {
        "model.embed_tokens.weight": "token_embd",
        "lm_head.weight": "output",
        "model.norm.weight": "output_norm",
    }
    if name in outside:
        return f"{outside[name]}.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{(PROJECTIONS | NORMS)[part]}.weight"
