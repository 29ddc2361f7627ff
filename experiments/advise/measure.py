"""Serve the users of ``users.toml`` under the designs for real: ``python experiments/advise/measure.py [USER…]``.

Writes ``rows.csv``, a row a request, and ``rows.json``, the speeds and what ``kvlab.advise`` said, beside this file.
Users that are not named keep their rows. Each takes one to three minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx

import kvlab
from kvlab.advising import AgentRequest, AgentWorkload, Description
from kvlab.advising.designs import Need, SizedDesign, designs
from kvlab.advising.kv_bytes import token_bytes_of
from kvlab.advising.measuring import measured_speed
from kvlab.advising.transcripts import transcript_workload
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy, parse_bytes
from kvlab.provenance import provenance

HERE = Path(__file__).parent
REPEATS = 3
DESCRIBED = tuple(field.name for field in dataclasses.fields(Description))
COLUMNS = (
    "user",
    "policy",
    "repeat",
    "part",
    "agent",
    "turn",
    "prompt_tokens",
    "cached_tokens",
    "ttft_ms",
    "kv_bytes",
    "cpu_s",
)
SYSTEMS = ("ollama:variant=article", "llama.cpp", "mlx-lm", "omlx")
"""Systems that are measured beside kvlab's own policies and the choice."""
OWN = ("ram", "tiered")


def read_users() -> dict[str, dict[str, Any]]:
    """The users, by name."""
    return tomllib.loads((HERE / "users.toml").read_text(encoding="utf-8"))


def workload_of(user: dict[str, Any], model: LoadedModel, data: Path) -> AgentWorkload:
    """The requests of a user."""
    if "transcript" in user:
        return transcript_workload(data / user["transcript"], model, n=user["n"], turns=user["turns"])
    described = {name: user[name] for name in DESCRIBED if name in user}
    return Description(**described).workload(vocabulary=min(2048, model.vocab_size), avoid=model.eos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("users", nargs="*", help="of users.toml; all without")
    parser.add_argument("--tau-bench", type=Path, default=Path("tau-bench"), help="folder of the transcript")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    model, users = kvlab.load(), read_users()
    for name in asked.users or users:
        rows, facts = measure(name, users[name], model, asked.tau_bench, asked.repeats)
        write(name, rows, facts)


def measure(
    name: str, user: dict[str, Any], model: LoadedModel, data: Path, repeats: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Serve one user under each design, designs in turns; return rows and facts."""
    workload = workload_of(user, model, data)
    token_bytes = token_bytes_of(model)
    speed = measured_speed(model, workload.longest, token_bytes(Policy.parse("full")))
    advice = kvlab.advise(
        *([data / user["transcript"]] if "transcript" in user else []),
        **{key: value for key, value in user.items() if key != "transcript"},
        model=model,
        speed=speed,
        what_if=False,
    )
    print(f"{name}: {advice.policy}; as good: {', '.join(advice.ties)}", flush=True)
    need = Need(workload.agents, workload.longest, parse_bytes(user["memory"]), parse_bytes(user["ssd"]))
    chosen = [one for one in designs(need, token_bytes) if is_measured(one, advice.policy)]
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        turned = chosen[repeat % len(chosen) :] + chosen[: repeat % len(chosen)]  # the machine's load may drift
        for design in turned[:: -1 if repeat % 2 else 1]:
            started, cpu = time.perf_counter(), time.process_time()
            made = list(serve(design, workload, model))
            cpu = round(time.process_time() - cpu, 3)
            rows += [
                {"user": name, "policy": str(design.candidate), "repeat": repeat, "cpu_s": cpu} | row for row in made
            ]
            total = sum(row["ttft_ms"] for row in made)
            print(
                f"  {design.candidate}: {total:,.0f} ms in {time.perf_counter() - started:.1f} s, {cpu:.1f} s of CPU",
                flush=True,
            )
    facts = {
        "speed": dataclasses.asdict(speed),
        "advised": advice.policy,
        "ties": list(advice.ties),
        "tokens": sum(len(request.prompt) for request in workload.requests),
        "provenance": provenance(model=model),
    }
    return rows, facts


def is_measured(design: SizedDesign, choice: str) -> bool:
    """Whether a design is among those that are measured."""
    text = str(design.candidate)
    named = [*OWN, *SYSTEMS]
    plain = text.partition(":")[0] + (":variant=article" if "variant=article" in text else "")
    return text == choice or ("engine=" not in text and plain in named)


def serve(design: SizedDesign, workload: AgentWorkload, model: LoadedModel) -> Iterator[dict[str, Any]]:
    """Serve all requests, every agent on a thread of its own, each part in a decoder of its own on the same folder."""
    with tempfile.TemporaryDirectory(prefix="kvlab-advise-") as folder:
        policy = design.policy
        if policy.tiers is not None and hasattr(policy.tiers, "dir"):
            tiers = dataclasses.replace(policy.tiers, **{"dir": folder})
            policy = Policy(policy.retention, policy.codec, policy.reuse, tiers)
        for number, part in enumerate(workload.parts()):
            with Decoder(model, policy, config=design.config) as decoder, ThreadPoolExecutor(len(part)) as pool:
                made = pool.map(lambda own: [_asked(decoder, request) for request in own], part)
                for rows in list(made):
                    yield from ({"part": number} | row for row in rows)


def _asked(decoder: Decoder, request: AgentRequest) -> dict[str, Any]:
    """Ask one request, whose answer is forced, as the history of the next one has it."""
    tokens = iter(request.reply)
    if request.pause_s:
        time.sleep(request.pause_s)
    done = decoder.generate(
        request.prompt,
        max_tokens=len(request.reply),
        sampler=lambda logprobs: mx.full(logprobs.shape[:-1], next(tokens, request.reply[-1])),
    )
    return {
        "agent": request.agent,
        "turn": request.turn,
        "prompt_tokens": done.prompt_tokens,
        "cached_tokens": done.cached_tokens,
        "ttft_ms": round(done.ttft_ms, 2),
        "kv_bytes": decoder.live_bytes() + decoder.tiers_bytes().get("ram", 0),
    }


def write(name: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the rows and facts of one user, and keep those of others."""
    file, notes = HERE / "rows.csv", HERE / "rows.json"
    kept: list[dict[str, Any]] = []
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as text:
            kept = [row for row in csv.DictReader(text) if row["user"] != name]
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    told = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
    notes.write_text(json.dumps(told | {name: facts}, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
