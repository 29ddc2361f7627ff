"""Measure two machines that share a Redis server over a line of a given rate and delay. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from network import Machine, NoNamespaces, first_line, two_machines

from kvlab.provenance import provenance

HERE = Path(__file__).parent
PORT = 6379
PARTS = ("loop", "lengths", "auto")
LENGTHS = [16, 32, 64, 96, 128, 256, 512, 1024, 2048]
NEW, KNOWN = [300, 700, 150, 1100], [330, 740, 170]
"""Prompts that ``restore=auto`` learns from: what computing takes, then what reading takes."""
REDIS = ("--save", "", "--appendonly", "no", "--protected-mode", "no", "--loglevel", "warning")
Rows = list[dict[str, Any]]


class Worker:
    """A machine.py in a namespace."""

    def __init__(self, machine: Machine, model: str) -> None:
        command = [sys.executable, str(HERE / "machine.py"), model]
        self.process = machine.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first_line(self.process.stdout)

    def __call__(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give an order; return its answer."""
        self.process.stdin.write(json.dumps({"order": order} | arguments) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(first_line(self.process.stdout))
        return found


def pinned(cpu: int | None) -> list[str]:
    return [] if cpu is None else ["taskset", "-c", str(cpu)]


@contextlib.contextmanager
def running(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Yield a process, and end it."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def network(arguments: argparse.Namespace, rate: float, delay_ms: float) -> Iterator[tuple[Worker, str, Worker, str]]:
    """Yield both machines, each with the URL by which it reaches the server, which runs on the first one.

    Server and line take the CPU ``arguments.other_cpu``; the models compute one after the other.
    """
    with contextlib.ExitStack() as stack:
        one, two = stack.enter_context(two_machines(rate * 1e6))
        other, quiet = arguments.other_cpu, {"stdout": subprocess.DEVNULL}
        server = [*pinned(other), arguments.redis, "--port", str(PORT), "--bind", "0.0.0.0", *REDIS]
        stack.enter_context(running(one.start(server, **quiet)))
        far = f"{one.address}:{PORT}"
        if delay_ms:
            proxy = [
                *pinned(other),
                sys.executable,
                str(HERE / "delay.py"),
                one.address,
                str(PORT),
                f"{delay_ms / 1e3}",
            ]
            line = stack.enter_context(running(two.start(proxy, stdout=subprocess.PIPE, text=True)))
            far = f"127.0.0.1:{first_line(line.stdout)}"
        workers = [Worker(machine, arguments.model) for machine in (one, two)]
        for worker in workers:
            stack.enter_context(running(worker.process))
        yield workers[0], f"redis://127.0.0.1:{PORT}/0", workers[1], f"redis://{far}/0"


def measured(arguments: argparse.Namespace, rate: float, delay_ms: float) -> Rows:
    rows: Rows = []
    with network(arguments, rate, delay_ms) as (first, near, second, far):
        for policy in arguments.policies:
            about = {"policy": policy, "mbit_per_s": rate, "delay_ms": delay_ms, "wait_ms": arguments.wait}
            spec = f"kvtc:transform={arguments.transform.resolve()}|tiered" if policy == "kvtc" else policy
            for part in arguments.parts:
                made = PART[part](arguments, spec, first, near, second, far)
                rows += [{"part": part} | about | row for row in made]
                print(f"{part} {about}: {len(made)} rows", file=sys.stderr, flush=True)
    return rows


def loop(arguments: argparse.Namespace, policy: str, first: Worker, near: str, second: Worker, far: str) -> Rows:
    """The same agent loop: twice on the first machine, on the second one with the remote, and there without it."""
    turns = arguments.turns
    served = {
        "first": first("loop", policy=policy, url=near, turns=turns),
        "first again": first("loop", policy=policy, url=near, turns=turns),
        "second": second("loop", policy=policy, url=far, turns=turns, wait_ms=arguments.wait),
        "computed": second("loop", policy=policy, url=None, turns=turns),
    }
    return [
        {"machine": machine, "turn": turn} | one | done["store"]
        for machine, done in served.items()
        for turn, one in enumerate(done["turns"], start=1)
    ]


def lengths(arguments: argparse.Namespace, policy: str, first: Worker, near: str, second: Worker, far: str) -> Rows:
    """Prompts of several lengths, read from the remote and computed in turns."""
    first("fill", policy=policy, url=near, lengths=arguments.lengths)
    asked = {"policy": policy, "url": far, "lengths": arguments.lengths, "repeats": arguments.repeats}
    asked["wait_ms"] = arguments.wait
    rows: Rows = second("lengths", **asked)["rows"]
    return rows


def auto(arguments: argparse.Namespace, policy: str, first: Worker, near: str, second: Worker, far: str) -> Rows:
    """What ``restore=auto`` does with each of these prompts."""
    first("fill", policy=policy, url=near, lengths=[*arguments.lengths, *KNOWN])
    asked = {"policy": policy, "url": far, "lengths": arguments.lengths, "learn": [*NEW, *KNOWN]}
    asked["wait_ms"] = arguments.wait
    rows: Rows = second("auto", **asked)["rows"]
    return rows


PART = {"loop": loop, "lengths": lengths, "auto": auto}


def break_even(rows: Rows) -> int | None:
    """Return the shortest length from which on reading took no longer than computing; None where none did.

    ``rows`` are those of part ``lengths`` of one policy and line; times are medians of the repeats.
    """
    found: int | None = None
    for length in sorted({row["length"] for row in rows}, reverse=True):
        mine = [row for row in rows if row["length"] == length]
        read, computed = (statistics.median(row[name] for row in mine) for name in ("ttft_ms", "computed_ttft_ms"))
        if read > computed:
            break
        found = length
    return found


def saved(path: Path, rows: Rows, facts: dict[str, Any]) -> None:
    """Write rows, in place of those of the same part, policy and line in the file."""

    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["part"], row["policy"], row["mbit_per_s"], row["delay_ms"], row["wait_ms"]

    old = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {name(row) for row in rows}
    kept = [row for row in old if name(row) not in new] + rows
    path.write_text(
        json.dumps({"provenance": facts})[:-1] + ',\n"rows": [\n' + ",\n".join(map(json.dumps, kept)) + "\n]}\n"
    )


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--policies", nargs="+", default=["full", "quantized:bits=4"])
    parser.add_argument("--transform", type=Path, help="file of `kvlab store fit` for the policy kvtc")
    parser.add_argument("--rates", nargs="+", type=float, default=[1000.0], help="megabits a second")
    parser.add_argument("--delays", nargs="+", type=float, default=[0.0, 1.0, 10.0], help="milliseconds each way")
    parser.add_argument("--wait", type=int, default=50, help="remote_wait of the second machine")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--other-cpu", type=int, help="CPU of the server and of the line's delay")
    parser.add_argument("--redis", default="redis-server", help="the server's program")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(given)
    if "kvtc" in arguments.policies and arguments.transform is None:
        parser.error("kvtc needs the transform of the model: --transform FILE, as `kvlab store fit` makes it")
    if os.geteuid() != 0:
        parser.error("network namespaces need root: run it as such, in a virtual machine")
    try:
        for rate in arguments.rates:
            for delay_ms in arguments.delays:
                rows = [{"model": Path(arguments.model).name} | row for row in measured(arguments, rate, delay_ms)]
                saved(arguments.out, rows, provenance())
    except NoNamespaces as error:
        print(f"no network namespaces here: {error}", file=sys.stderr)
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main())
