"""`kl:FILE`: any text or transcript, teacher-forced: how far a policy is from the uncached model, token by token.

A file of conversations (`.json`, `.jsonl`, plain or `.xz`) is read as `transcript:FILE` reads it: the answers in it are
forced, each behind its history. Any other file is a text: some tokens are the context, and those behind are forced.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from kvlab.errors import WorkloadError
from kvlab.workloads.base import WorkloadRequest, check_count
from kvlab.workloads.forced import TEXT, TeacherForced, TextRequest
from kvlab.workloads.transcript import Transcript

MEASURED_TOKENS = 128
"""Tokens behind each context of a text whose distributions are compared."""
CONVERSATIONS = (".json", ".jsonl", ".ndjson")


class KL(TeacherForced):
    """`n` parts of a text with a context of `tokens` tokens, or `n` conversations of `turns` answers (if given)."""

    name = "kl"
    argument = "FILE"

    def __init__(
        self, path: str | Path, n: int | None = None, turns: int | None = None, tokens: int | None = None
    ) -> None:
        check_count("n", n)
        check_count("turns", turns)
        check_count("tokens", tokens)
        self.path, self.n = Path(path), n
        self.name = f"kl:{path}"
        self.is_text = Path(self.path.name.removesuffix(".xz")).suffix not in CONVERSATIONS
        if self.is_text and turns is not None:
            raise WorkloadError(f"turns applies to conversations, and {path} is a text; write n, its parts, instead")
        if not self.is_text and tokens is not None:
            raise WorkloadError(f"tokens applies to texts, and {path} holds conversations; write turns instead")
        self.tokens = tokens or 512
        self._transcript = None if self.is_text else Transcript(path, n, turns)
        self._text = _read_text(self.path) if self.is_text else ""

    def requests(self) -> list[WorkloadRequest]:
        if self._transcript is not None:
            return self._transcript.requests()
        parts = self.n or 8
        return [
            TextRequest(
                f"text-{i}", 1, (), (), None, TEXT, MEASURED_TOKENS,
                text=self._text, context_tokens=self.tokens, part=i, parts=parts,
            )
            for i in range(parts)
        ]  # fmt: skip


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        text = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror or error}; give a text or a file of conversations") from error
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: not readable as UTF-8 text ({error}); give a text") from error
    if not text.strip():
        raise WorkloadError(f"{path} is empty; give a text of some hundred words, or a file of conversations")
    return text
