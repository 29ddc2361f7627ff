"""A command ends with its owner, however the owner ends, in real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from kvlab.audit.bound_process import NOT_FOUND, bound_command, has_ended

PATIENCE_S = 120.0
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [
    sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]  # fmt: skip


def eventually(done: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < until:
        time.sleep(0.05)
    return done()


def owned(command: Sequence[str], owner: subprocess.Popen[bytes], **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        bound_command(command, owner=owner.pid, **options),  # type: ignore[arg-type]
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def watchers(owner: int) -> list[psutil.Process]:
    """Processes that watch this owner; the command itself no longer has these words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("bound_process.py") for word in words) and str(owner) in words:
            found.append(process)
    return found


@pytest.mark.parametrize("signal_name", ["kill", "terminate"])
def test_a_command_ends_when_its_owner_is_killed_and_its_folder_is_removed(signal_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    (folder / "store").mkdir(parents=True)
    (folder / "models").symlink_to(tmp_path, target_is_directory=True)
    owner = subprocess.Popen(SLEEPER)
    command = owned(SLEEPER, owner, remove=folder)
    assert eventually(lambda: psutil.Process(command.pid).cmdline() == SLEEPER), "its pid is that of the command"
    getattr(owner, signal_name)()
    assert command.wait(PATIENCE_S) < 0
    owner.wait()
    assert eventually(lambda: not folder.exists())
    assert tmp_path.is_dir() and eventually(lambda: not watchers(owner.pid))


def test_a_command_that_ignores_sigterm_is_killed() -> None:
    owner = subprocess.Popen(SLEEPER)
    command = owned(DEAF, owner, stop_s=0.1)
    assert command.stdout is not None and command.stdout.readline() == b"deaf\n"
    owner.kill()
    owner.wait()
    assert command.wait(PATIENCE_S) == -9


def test_a_command_that_ends_first_leaves_nothing_and_its_folder(tmp_path: Path) -> None:
    owner = subprocess.Popen(SLEEPER)
    try:
        command = owned([sys.executable, "-c", "print('said'); raise SystemExit(3)"], owner, remove=tmp_path)
        said, _ = command.communicate(timeout=PATIENCE_S)
        assert (said, command.returncode) == (b"said\n", 3)
        assert eventually(lambda: not watchers(owner.pid))
        assert tmp_path.is_dir()
        assert owned(["/no/such/program"], owner).wait(PATIENCE_S) == NOT_FOUND
    finally:
        owner.kill()
        owner.wait()


def test_a_command_whose_owner_is_gone_already_ends() -> None:
    owner = subprocess.Popen([sys.executable, "-c", ""])
    owner.wait()
    assert owned(SLEEPER, owner).wait(PATIENCE_S) < 0


def test_a_killed_audit_leaves_no_server_and_no_folder(tmp_path: Path) -> None:
    program = shutil.which("kvlab", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("the command kvlab is not installed beside this Python")
    environment = {**os.environ, "KVLAB_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    audit = subprocess.Popen(
        [program, "audit", "--policy", "full", "--only", "clients"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert eventually(lambda: bool(list(tmp_path.glob("kvlab-audit-*/pid"))))
        [folder] = tmp_path.glob("kvlab-audit-*")
        assert eventually(lambda: (folder / "pid").read_text() != "")
        server = psutil.Process(int((folder / "pid").read_text()))
    finally:
        audit.kill()
        audit.wait()
    assert eventually(lambda: has_ended(server))
    assert eventually(lambda: not folder.exists())
