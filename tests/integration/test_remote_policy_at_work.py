"""``tiered:remote=URL`` in a decoder and in a run: the second machine does not compute what the first one did."""

from __future__ import annotations

from pathlib import Path

import pytest

import kvlab
from kvlab.models import LoadedModel

pytest.importorskip("obstore", reason="the extra `remote` is not installed")


def test_a_second_machine_reads_what_the_first_one_computed(bundled: LoadedModel, tmp_path: Path) -> None:
    prompt = [5 + n % 300 for n in range(400)]
    cached, said = [], []
    for machine in ("mac-1", "mac-2", "mac-3"):
        policy = f"tiered:dir={tmp_path}/{machine},remote=file://{tmp_path}/shared,remote_wait=30000"
        with kvlab.Decoder(bundled, policy) as decoder:
            done = decoder.generate(prompt, max_tokens=4)
            cached.append(done.cached_tokens)
            said.append(list(done.tokens))
    assert cached[0] == 0 and cached[1] == cached[2] == len(prompt) - 1
    assert said[0] == said[1] == said[2]


def test_rows_of_a_run_count_the_bytes_of_the_remote(bundled: LoadedModel, tmp_path: Path) -> None:
    policy = f"tiered:remote=file://{tmp_path}/shared,remote_wait=30000"
    results = kvlab.run(policy, "chat", bundled, turns=2, progress=False)
    held = [row for row in results.rows if row["metric"] == "kv_bytes_remote"]
    assert held and held[-1]["value"] > 0 and held[-1]["unit"] == "bytes" and held[-1]["policy"] == policy
