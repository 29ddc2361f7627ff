"""Ask real servers what their caches keep: ``python experiments/real_servers/observe.py [SETUP…]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import setups
from models import KNOWN_REPLIES, MODELS
from process import ServerProcess
from real_weights import GEMMA3, SMOLLM2
from scenarios import BRIEF_SCENARIOS, SCENARIOS
from session import Language, Session
from setups import SETUPS, WINDOWS, Setup
from tqdm import tqdm
from window_scenarios import PLAIN_WINDOW_SCENARIOS, WINDOW_SCENARIOS

from kvlab.systems.observations import ObservedSession, Step, write_observations

SCENARIO_NAMES = [scenario.__name__ for scenario in (*SCENARIOS, *WINDOW_SCENARIOS)]
ROWS = Path(__file__).resolve().parents[1] / "rows" / "real_servers.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setups", nargs="*", help=f"of {', '.join(SETUPS)}; all without")
    parser.add_argument("--environments", type=Path, help="folder of the servers; else KVLAB_HOME/real_servers")
    parser.add_argument("--only", nargs="*", help="names of scenarios; all without")
    parser.add_argument("--without", nargs="*", default=[], help="names of scenarios that are left out")
    parser.add_argument("--out", type=Path, default=ROWS)
    options = parser.parse_args()
    if unknown := set(options.setups) - set(SETUPS):
        parser.error(f"no setup {min(unknown)!r}; there are {', '.join(SETUPS)}")
    for name in options.setups or SETUPS:
        if reason := setups.why_absent(SETUPS[name], options.environments):
            print(f"skipped {name}: {reason}", file=sys.stderr)
            continue
        session = observe(SETUPS[name], options.environments, options.only or SCENARIO_NAMES, options.without)
        write_observations(options.out, [session])
        print(f"{name}: {sum(step.is_request for step in session.steps)} requests", file=sys.stderr)


def observe(setup: Setup, environments: Path | None, only: Sequence[str], without: Sequence[str]) -> ObservedSession:
    """Start a server with an empty cache, ask it every scenario, and return what it said."""
    model = MODELS[setup.model](environments)
    by_model = {WINDOWS: WINDOW_SCENARIOS, GEMMA3: PLAIN_WINDOW_SCENARIOS, SMOLLM2: BRIEF_SCENARIOS}
    scenarios = by_model.get(setup.model, SCENARIOS)
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-real-") as work,
        ServerProcess(setup, model, Path(work), environments) as server,
        tqdm(desc=setup.name, unit="request") as bar,
    ):
        language = Language(model, replies_known=setup.model in KNOWN_REPLIES)
        session = Session(server, language, bar)
        for scenario in scenarios:
            if scenario.__name__ in only and scenario.__name__ not in without:
                session.scenario = scenario.__name__
                scenario(session)
    packages = setups.versions(setup, environments)
    facts = {
        "server": setup.server,
        "version": setups.version_label(packages, setup),
        "flags": " ".join(setup.flags),
        "about": setup.about,
        "packages": packages,
        "model": setup.model,
        "user_opening_tokens": language.user_opening(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    steps = [
        Step(
            *(one.scenario, one.step, one.route, tuple(one.prompt), one.suffix, tuple(one.reply), one.cached, one.note),
            ends=tuple(one.ends),
            last_role=one.last_role,
        )
        for one in session.done
    ]
    return ObservedSession(setup.name, tuple(steps), facts)


if __name__ == "__main__":
    main()
