"""Accidents to the store under a decoder, none of which may ever change a token.

``pytest -m soak tests/acceptance/test_decoder_accidents.py`` runs ten times as many of each; ``-rP`` shows the counts.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from kvlab.decoder import Decoder
from kvlab.errors import StoreError
from kvlab.models import LoadedModel
from kvlab.store.ssd import tier
from tests.architectures import load_recipe
from tests.decoder_child import TOKENS, serve, talk
from tests.soaking import times

PROMPTS = [talk(seed) for seed in range(3)]


class Answers:
    """A model and the answers of no cache."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def of(self, prompt: list[int]) -> tuple[int, ...]:
        if tuple(prompt) not in self._known:
            with Decoder(self.loaded, "full", prefill_step=64) as decoder:
                self._known[tuple(prompt)] = decoder.generate(prompt, max_tokens=TOKENS).tokens
        return self._known[tuple(prompt)]

    def decoder(self, folder: Path, **settings: object) -> Decoder:
        return Decoder(self.loaded, spec(folder, **settings), prefill_step=64)

    def ask(self, decoder: Decoder, prompts: list[list[int]] = PROMPTS) -> list[tuple[int, str]]:
        """Every answer must be that of no cache; cached tokens and miss of each."""
        streams = [decoder.submit(prompt, max_tokens=TOKENS) for prompt in prompts]
        done = [stream.result() for stream in streams]
        assert [completion.tokens for completion in done] == [self.of(prompt) for prompt in prompts]
        return [(completion.cached_tokens, completion.miss) for completion in done]

    def filled(self, folder: Path) -> None:
        with self.decoder(folder) as decoder:
            self.ask(decoder)


def spec(folder: Path, **settings: object) -> str:
    more = "".join(f",{name}={value}" for name, value in settings.items())
    return f"paged:block=16,checkpoint=32|tiered:dir={folder}{more}"


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(load_recipe(request.param, tmp_path_factory.mktemp(request.param)))


def files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]


@times(25)
def test_flipped_bits(answers: Answers, tmp_path: Path, count: int) -> None:
    """In any file of the folder, the index and its log too."""
    good = tmp_path / "good"
    answers.filled(good)
    rng = random.Random(count)
    reused = noticed = refused = 0
    for i in range(count):
        folder = tmp_path / str(i)
        shutil.copytree(good, folder)
        file = rng.choice(files(folder))
        data = bytearray(file.read_bytes())
        at = rng.randrange(8 * len(data))
        data[at // 8] ^= 1 << at % 8
        file.write_bytes(data)
        try:
            with answers.decoder(folder) as decoder:
                told = answers.ask(decoder)
        except StoreError:  # the flip made the index one of a newer version: refused at the start, in one line
            refused += 1
        else:
            noticed += any(miss == "corrupt" for _, miss in told)
            reused += sum(cached for cached, _ in told)
        shutil.rmtree(folder)
    assert reused and noticed >= count // 4  # of checkpoints, only the best for each prompt is read at all
    print(f"{count} flips, {noticed} noticed by a request, {refused} folders refused; {reused} tokens reused")


@pytest.mark.parametrize("accident", ["truncated", "emptied", "deleted", "foreign", "swapped"])
def test_bad_files(answers: Answers, tmp_path: Path, accident: str) -> None:
    answers.filled(tmp_path)
    blocks = files(tmp_path / "blocks")
    for i, file in enumerate(blocks[::2]):
        if accident == "deleted":
            file.unlink()
        elif accident == "swapped":
            file.write_bytes(blocks[2 * i - 1].read_bytes())
        else:
            data = file.read_bytes()
            file.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "foreign": b"{}" * 999}[accident])
    for _ in range(2):
        with answers.decoder(tmp_path) as decoder:
            answers.ask(decoder)
    with answers.decoder(tmp_path) as decoder:  # all of it was computed and stored again
        assert min(cached for cached, _ in answers.ask(decoder)) > 0


def test_the_folder_deleted_under_a_running_decoder(answers: Answers, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    answers.filled(folder)
    with answers.decoder(folder, ram=1) as decoder:  # so little RAM that every block comes from the folder
        streams = [decoder.submit(prompt, max_tokens=TOKENS) for prompt in PROMPTS]
        while folder.exists():  # the decoder may write into it meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        done = [stream.result().tokens for stream in streams]
        assert done == [answers.of(prompt) for prompt in PROMPTS]
        answers.ask(decoder)
        answers.ask(decoder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk(answers: Answers, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier, "RETRY_S", 0.0)
    many = [talk(seed) for seed in range(12)]
    with answers.decoder(small_disk / "store") as decoder:
        for prompt in many:
            answers.ask(decoder, [prompt])
            assert decoder.store is not None
            decoder.store.flush()
        assert decoder.store.stats()["failures"] > 0
        answers.ask(decoder, many)
    with answers.decoder(small_disk / "store") as decoder:
        answers.ask(decoder, many)


def test_a_read_only_folder(answers: Answers, small_disk: Path) -> None:
    folder = small_disk / "store"
    with answers.decoder(folder) as decoder:
        answers.ask(decoder, PROMPTS[:1])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with answers.decoder(folder) as decoder:
        assert answers.ask(decoder, PROMPTS[:1])[0][0] > 0
        answers.ask(decoder)


# -- other processes --------------------------------------------------------------------------------------------------


class Child:
    """A process that decodes; see :mod:`tests.decoder_child`."""

    def __init__(self, answers: Answers, folder: Path, seeds: range) -> None:
        here, there = multiprocessing.Pipe(duplex=False)
        # A server that has the imports done forks a child in no time.
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(["tests.decoder_child"])
        self.pipe: Connection = here
        self.process = context.Process(target=serve, args=(str(answers.loaded.path), spec(folder), seeds, there))
        self.process.start()
        there.close()

    def told(self) -> list[tuple[int, tuple[int, ...], int]]:
        """What was acknowledged and not read yet, to the end of the pipe."""
        got = []
        try:
            while True:
                got.append(self.pipe.recv())
        except (EOFError, OSError):
            return got

    def kill(self, wait: float) -> list[tuple[int, tuple[int, ...], int]]:
        """Kill -9, ``wait`` seconds after the first acknowledgement; all that was acknowledged."""
        assert self.pipe.poll(60)
        time.sleep(wait)
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return self.told()


@times(5)
def test_killed_decoders_lose_nothing_acknowledged(answers: Answers, tmp_path: Path, count: int) -> None:
    rng = random.Random(count)
    acknowledged = 0
    for i in range(count):
        child = Child(answers, tmp_path / "store", range(1000 * i, 1000 * i + 999))
        told = child.kill(0.4 * rng.random())
        acknowledged += len(told)
        with answers.decoder(tmp_path / "store") as decoder:
            prompts = [talk(seed) for seed, _, _ in told]
            served = answers.ask(decoder, prompts)
            assert [tokens for _, tokens, _ in told] == [answers.of(prompt) for prompt in prompts]
            for prompt, (cached, miss) in zip(prompts, served, strict=True):
                assert cached >= len(prompt) - 33 and miss in ("", "no_checkpoint"), (len(prompt), cached, miss)
    print(f"{count} kills, {acknowledged} acknowledged answers, all served")


def test_two_decoders_on_one_folder(answers: Answers, tmp_path: Path) -> None:
    children = [Child(answers, tmp_path / "store", range(12)) for _ in range(2)]
    told = [child.told() for child in children]
    for one in told:
        assert [(seed, tokens) for seed, tokens, _ in one] == [(s, answers.of(talk(s))) for s in range(12)]
    with answers.decoder(tmp_path / "store") as decoder:
        assert min(cached for cached, _ in answers.ask(decoder, [talk(seed) for seed in range(12)])) > 0
        assert decoder.store is not None
        assert decoder.store.check_integrity().problems == ()
