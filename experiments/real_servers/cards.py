"""Audit real servers: ``python experiments/real_servers/cards.py [SETUP…] --out FOLDER`` writes a report card of each.

The audit is told nothing about the server but its address and a command that restarts it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import setups
from models import MODELS
from setups import SETUPS, Setup
from word_chain import ATTENDING, NAME

from kvlab.audit import own_server

FLIPPED_RESTART = Path(__file__).with_name("flipped_restart.py")
SALT = "calibration"
"""The same prompts for every server, so that cards can be laid side by side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setups", nargs="*", help=f"of {', '.join(SETUPS)}; all without")
    parser.add_argument("--environments", type=Path, help="folder of the servers; else KVLAB_HOME/real_servers")
    parser.add_argument("--model", type=Path, help="folder of a model; else the setup's, or one like it that attends")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cards")
    parser.add_argument("--only", nargs="*", default=[], help="names of probes; all without")
    parser.add_argument("--tokens", type=int, default=512, help="size of a usual prompt")
    parser.add_argument("--flip-bits", action="store_true", help="a restart finds KV on disk with its signs inverted")
    parser.add_argument("--name", help="of the card's file; else the setup's")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.setups or SETUPS:
        if reason := setups.why_absent(SETUPS[name], options.environments):
            print(f"skipped {name}: {reason}", file=sys.stderr)
            continue
        model = options.model or _model(SETUPS[name], options.environments)
        only = [word for probe in options.only for word in ("--only", probe)]
        words = [*only, "--tokens", str(options.tokens)]
        card = audit(SETUPS[name], model, options.environments, words, flips=options.flip_bits)
        (options.out / f"{options.name or name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _model(setup: Setup, environments: Path | None) -> Path:
    """Return the folder of a model in which wrong KV gives another answer."""
    return MODELS[ATTENDING if setup.model == NAME else setup.model](environments)


def audit(
    setup: Setup, model: Path, environments: Path | None, words: list[str], *, flips: bool = False
) -> dict[str, object]:
    """Start a server with an empty home, audit it, and return the card with the server's versions.

    ``flips``: its command for a restart inverts the signs of the KV that the server has left in files.
    """
    with tempfile.TemporaryDirectory(prefix="kvlab-card-") as work:
        folder = Path(work)
        (folder / "home").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own_home = ["env", f"HOME={folder / 'home'}", "HF_HUB_OFFLINE=1"]
        url = f"http://127.0.0.1:{port}"
        plan = {"command": [*own_home, *setups.command(setup, port, model, environments)], "url": url}
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        own_server.start(folder)
        try:
            restart = shlex.join([sys.executable, "-m", "kvlab.audit.own_server", str(folder)])
            flipping = shlex.join([sys.executable, str(FLIPPED_RESTART), str(folder)])
            told = [
                "--salt",
                SALT,
                "--restart",
                flipping if flips else restart,
                "--kill",
                f"{restart} kill",
                "--json",
                *words,
            ]
            command = [sys.executable, "-m", "kvlab", "audit", url, *told]
            card = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            flipped = [int(line) for line in (folder / "flipped").read_text().split()] if flips else []
        finally:
            own_server.stop(folder)
    facts: dict[str, object] = {"setup": setup.name, "flags": " ".join(setup.flags), "model": model.name}
    facts |= {"date": datetime.now(UTC).date().isoformat(), **setups.versions(setup, environments)}
    if flips:
        facts["files_flipped_at_restart"] = flipped
    return {**card, "provenance": {**card["provenance"], "observed": facts}}


if __name__ == "__main__":
    main()
