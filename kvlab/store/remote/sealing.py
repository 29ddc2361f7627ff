"""What others see of blocks in a remote: their names, and their bytes as they are or encrypted.

With a secret key, names are a keyed hash and bytes are sealed with AES-256-GCM, bound to their name:

    0   8 s   magic "KVLABSEA"
    8   8 s   which secret, as a hash of it
    16  12 s  nonce, random
    28        ciphertext, with a tag of 16 bytes at its end

Who lacks the secret looks for other names, so a shared remote has only misses for them. Names and sizes are all that a
reader of the remote learns; who changes a byte, or moves bytes to another name, makes a block that is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Protocol

from kvlab.errors import StoreError
from kvlab.store.keys import FORMAT, KEY_BYTES
from kvlab.store.ssd.blockfile import BadBlock

KEY_VARIABLE = "KVLAB_REMOTE_KEY"
SEALED_MAGIC = b"KVLABSEA"
ID_BYTES, NONCE_BYTES = 8, 12
SEAL_OFFSET = len(SEALED_MAGIC) + ID_BYTES + NONCE_BYTES
ROOT = f"kvlab/{FORMAT}/"
BLOCKS, CHILDREN, CHECKPOINTS, HEADS = (f"{ROOT}{letter}/" for letter in "bckh")
"""How the names of blocks begin, and of the collections of a block's children, its checkpoints and a prompt's roots."""


class Sealing(Protocol):
    """Gives names to what is stored, and turns bytes into what lies in the remote, and back."""

    is_secret: bool

    def name(self, folder: str, key: bytes) -> str:
        """Return the name of ``key`` in one of the folders above."""
        ...

    def seal(self, name: str, data: bytes) -> bytes:
        """Return the bytes to store under ``name``."""
        ...

    def open(self, name: str, data: bytes) -> bytes:
        """Return what :meth:`seal` was given. Raises ``BadBlock``, or ``OtherSecret``."""
        ...


class OtherSecret(BadBlock):
    """Raised for bytes that were sealed with another secret, or with one where there is none."""


class Unsealed:
    """Keys in hexadecimal, and bytes as they are: who reads the remote reads the tokens, who writes it is trusted."""

    is_secret = False

    def name(self, folder: str, key: bytes) -> str:
        return folder + key.hex()

    def seal(self, name: str, data: bytes) -> bytes:
        return data

    def open(self, name: str, data: bytes) -> bytes:
        if data[: len(SEALED_MAGIC)] == SEALED_MAGIC:
            raise OtherSecret(f"it is encrypted; set {KEY_VARIABLE}")
        return data


class Sealed:
    """Keyed names and AES-256-GCM with keys that follow from one secret of 32 bytes."""

    is_secret = True

    def __init__(self, secret: bytes) -> None:
        """Raises ``StoreError`` without the package that encrypts."""
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise StoreError(f"{KEY_VARIABLE} needs a package: pip install 'kvlab[remote]' ({error})") from error
        self._cipher: Any = AESGCM(_derived(secret, b"kvlab.encrypt"))
        self._names = _derived(secret, b"kvlab.names")
        self._id = _derived(secret, b"kvlab.id")[:ID_BYTES]

    def name(self, folder: str, key: bytes) -> str:
        return folder + hashlib.blake2b(folder.encode() + key, key=self._names, digest_size=KEY_BYTES).hexdigest()

    def seal(self, name: str, data: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return b"".join([SEALED_MAGIC, self._id, nonce, self._cipher.encrypt(nonce, data, name.encode())])

    def open(self, name: str, data: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        if data[: len(SEALED_MAGIC)] != SEALED_MAGIC or len(data) < SEAL_OFFSET:
            raise BadBlock("it is not encrypted, as everything of this remote must be")
        if data[len(SEALED_MAGIC) : SEAL_OFFSET - NONCE_BYTES] != self._id:
            raise OtherSecret(f"it was encrypted with another {KEY_VARIABLE}")
        try:
            nonce = data[SEAL_OFFSET - NONCE_BYTES : SEAL_OFFSET]
            return bytes(self._cipher.decrypt(nonce, memoryview(data)[SEAL_OFFSET:], name.encode()))
        except InvalidTag:
            raise BadBlock("it was changed since it was encrypted, or belongs under another name") from None


def sealing_from_environment() -> Sealing:
    """Return how the environment asks for blocks to be sealed. Raises ``StoreError`` for a secret of another form."""
    text = os.environ.get(KEY_VARIABLE, "").strip()
    if not text:
        return Unsealed()
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise StoreError(
            f"{KEY_VARIABLE} must be 64 hexadecimal digits; make one with: "
            "python3 -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return Sealed(bytes.fromhex(text))


def _derived(secret: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(key=secret, person=person, digest_size=32).digest()
