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
from pathlib import Path

import setups
from setups import SETUPS, Setup
from word_chain import word_chain

from kvlab.audit import own_server

SALT = "calibration"
"""The same prompts for every server, so that cards can be laid side by side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setups", nargs="*", help=f"of {', '.join(SETUPS)}; all without")
    parser.add_argument("--environments", type=Path, help="folder of the servers; else KVLAB_HOME/real_servers")
    parser.add_argument("--model", type=Path, help="folder of a model; else one that computes next to nothing")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cards")
    parser.add_argument("--only", nargs="*", default=[], help="names of probes; all without")
    parser.add_argument("--tokens", type=int, default=512, help="size of a usual prompt")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.setups or SETUPS:
        if reason := setups.why_absent(SETUPS[name], options.environments):
            print(f"skipped {name}: {reason}", file=sys.stderr)
            continue
        model = options.model or word_chain(options.environments, attends=True)
        only = [word for probe in options.only for word in ("--only", probe)]
        card = audit(SETUPS[name], model, options.environments, [*only, "--tokens", str(options.tokens)])
        (options.out / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def audit(setup: Setup, model: Path, environments: Path | None, words: list[str]) -> dict[str, object]:
    """Start a server with an empty home, audit it, and return the card with the server's versions."""
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
            told = ["--salt", SALT, "--restart", restart, "--kill", f"{restart} kill", "--json", *words]
            command = [sys.executable, "-m", "kvlab", "audit", url, *told]
            card = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        finally:
            own_server.stop(folder)
    facts = {"setup": setup.name, "flags": " ".join(setup.flags), **setups.versions(setup, environments)}
    return {**card, "provenance": {**card["provenance"], "observed": facts}}


if __name__ == "__main__":
    main()
