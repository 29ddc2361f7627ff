"""The bytes of single tokens, which are halves of characters at times."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""How vocabularies of SentencePiece write a space."""


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter in which byte-level vocabularies are written."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """Finds the bytes of tokens of mlx-lm's ``tokenizer``; those of a text's tokens, joined, are the text's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {int(token): str(text) for token, text in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._letters = _byte_letters()
        self._size = len(tokenizer)
        self._kind = type(tokenizer.detokenizer)

    def of(self, token: int) -> bytes:
        """Return the bytes of one token; none for an id that the tokenizer does not have."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token) if 0 <= token < self._size else None
        if not isinstance(piece, str):
            return b""
        if self._kind is BPEStreamingDetokenizer:
            return b"".join(
                bytes([self._letters[letter]]) if letter in self._letters else letter.encode() for letter in piece
            )
        if self._kind is not SPMStreamingDetokenizer:
            return str(self._tokenizer.decode([token])).encode("utf-8", "replace")
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE, " ").encode()


def shown(token: bytes, before: str = "") -> str:
    r"""Return a token as text; bytes that are no text as ``\xe2\x98`` behind ``before``, as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return before + "".join(f"\\x{byte:02x}" for byte in token)


def offsets(tokens: Sequence[bytes], decoder: codecs.IncrementalDecoder, start: int) -> tuple[list[int], int]:
    """Return at which character of the text each token begins, and where the next one will.

    ``decoder`` decodes the answer's bytes from its first token on; ``start`` is the number of characters before.
    """
    made = []
    for token in tokens:
        made.append(start)
        start += len(decoder.decode(token))
    return made, start
