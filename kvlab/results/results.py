"""Results: tidy rows with their provenance and the record of events, in memory and in a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import zarr

from kvlab import provenance
from kvlab.errors import RunError
from kvlab.policies.labels import policy_labels
from kvlab.recording.recorder import Recorder, opened_record, read_record, write_record
from kvlab.recording.zarr_frames import replacing, write_frame
from kvlab.results.answers import answers
from kvlab.results.certified import Certificate, certify
from kvlab.results.certified.certificate import CONFIDENCE
from kvlab.results.folders import make_folder
from kvlab.results.load import OTHER_LOAD, joined_load, joined_systems
from kvlab.results.notebook_view import notebook_html
from kvlab.results.points import points_of
from kvlab.results.rows import SCHEMA, Row
from kvlab.results.said import AnswerSheet, answer_sheet
from kvlab.results.summary import summarize
from kvlab.results.tables import results_text
from kvlab.results.verdict import RunVerdict, verdict
from kvlab.systems import SYSTEMS


@dataclass(repr=False)
class Results:
    """Rows of one or more runs, with their provenance and, for each policy, its recorder."""

    rows: list[Row]
    provenance: dict[str, Any]
    recorders: dict[str, Recorder] = field(default_factory=dict)

    @property
    def policies(self) -> list[str]:
        """The policies in the order of their first row: the order of every table and legend."""
        return list(dict.fromkeys(r["policy"] for r in self.rows))

    def frame(self) -> pl.DataFrame:
        """Return the rows, with all columns of SCHEMA (null where a column does not apply)."""
        return pl.DataFrame(self.rows, schema=dict(SCHEMA))

    def events(self, kind: str) -> pl.DataFrame:
        """Return the events of one kind under all recorded policies, with `policy` and the other tags as columns."""
        frames = []
        for policy, recorder in self.recorders.items():
            frames.append(recorder.tagged(kind).select(pl.lit(policy).alias("policy"), pl.exclude("policy")))
        return pl.concat(frames, how="diagonal_relaxed") if frames else Recorder().frame(kind)

    def document(self, command: str) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return provenance.document(command, self.rows, self.provenance)

    def save(self, folder: str | Path) -> Path:
        """Write `rows.ndjson`, `provenance.json` and `record.zarr` (the rows again, and the events of each policy)."""
        folder = Path(folder)
        make_folder(folder)
        with replacing(folder / "record.zarr") as path:
            root = zarr.create_group(path)
            write_frame(root, "rows", self.frame())
            for slug, policy in self._slugs().items():
                group = root.create_group(f"events/{slug}", attributes={"policy": policy})
                write_record(group, self.recorders[policy])
            root.attrs.update({"provenance": self.provenance})
        _write_text(folder / "rows.ndjson", "".join(json.dumps(r) + "\n" for r in self.rows))
        _write_text(folder / "provenance.json", json.dumps(self.provenance, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read a saved run. Raises RunError where it is missing or damaged."""
        folder = Path(folder)
        try:
            provenance = json.loads((folder / "provenance.json").read_text())
            rows = [json.loads(line) for line in (folder / "rows.ndjson").read_text().splitlines()]
        except FileNotFoundError as error:
            raise RunError(f"{folder}: not a run folder, it has no {Path(error.filename).name}") from error
        except (OSError, ValueError) as error:
            raise RunError(f"{folder}: the rows cannot be read ({error}); run the experiment again") from error
        recorders = {}
        with opened_record(folder / "record.zarr") as root:
            events: Any = root.get("events")
            for _, group in events.groups() if events is not None else ():
                recorders[group.attrs["policy"]] = read_record(group)
        order = list(dict.fromkeys(r["policy"] for r in rows))
        known = {policy: recorders.pop(policy) for policy in order if policy in recorders}
        return cls(rows, provenance, known | recorders)

    def answers(self) -> pl.DataFrame:
        """Return what was said: one row for each request, policy and repeat, with the question and its grades."""
        return answers(self.frame())

    def said(self, most: int = 12) -> AnswerSheet:
        """Return the answers to read, in a notebook or a terminal: equal ones together, differences marked."""
        return answer_sheet(self.frame(), most)

    def verdict(self) -> RunVerdict:
        """Return one sentence on which policy is best at what, and what these rows cannot tell.

        For the rows of one point: of a sweep with a grid, choose them first (`kvlab.results.points`).
        """
        return verdict(self.frame(), self.provenance, self.labels())

    def certify(
        self, metric: str, *, at_most: float, confidence: float | None = CONFIDENCE, kind: str | None = None
    ) -> Certificate:
        """Find the policy with the fewest live bytes whose loss stays below a bound: `kvlab.results.certified`."""
        return certify(self.frame(), metric, at_most=at_most, confidence=confidence, kind=kind)

    def labels(self) -> dict[str, str]:
        """Return the shortest distinct name of every policy."""
        return policy_labels(self.policies)

    def summary(self) -> pl.DataFrame:
        """Return the main numbers, one row a policy."""
        return summarize(self.frame())

    def table(self) -> str:
        """Return the summary as text; of a teacher-forced workload, its distances with confidence intervals."""
        return results_text(self.frame())

    def __repr__(self) -> str:
        return self.table() if self.rows else "no results"

    def _slugs(self) -> dict[str, str]:
        slugs: dict[str, str] = {}
        for policy in self.recorders:
            slug = base = re.sub(r"[^A-Za-z0-9.=-]+", "_", policy)[:80] or "policy"
            count = 2
            while slug in slugs:
                slug, count = f"{base}-{count}", count + 1
            slugs[slug] = policy
        return slugs

    def _repr_html_(self) -> str:
        found = self.verdict() if self.rows and len(points_of(self.frame())) == 1 else None
        return notebook_html(self.frame(), self.provenance, found, self.said())


def merged(parts: Iterable[Results]) -> Results:
    """Join the rows of `parts`; provenance and each policy's recorder are those of the first that has them.

    What other programs took of the machine (`other_load`) is joined, too.
    """
    rows: list[Row] = []
    recorders: dict[str, Recorder] = {}
    facts: list[dict[str, Any]] = []
    for part in parts:  # one at a time: the record of a long run is large
        rows += part.rows
        for policy, recorder in part.recorders.items():
            recorders.setdefault(policy, recorder)
        facts.append(part.provenance)
    if not facts:
        raise RunError("no results to put together")
    load, systems = joined_load(facts), joined_systems(facts)
    more = ({OTHER_LOAD: load} if load else {}) | ({SYSTEMS: systems} if systems else {})
    return Results(rows, facts[0] | more, recorders)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
