"""``kvlab bench restore`` measures what it says; how fast that is depends on the machine."""

import numpy as np
from mlx.utils import tree_flatten

from kvlab.bench import get, names
from kvlab.bench.models import random_qwen3


def test_it_gives_ratios_and_what_they_are_made_of():
    assert "restore" in names() and "models" not in names()
    rows = get("restore")(rounds=1, prefix=150, prompt=200, tokens=8)
    ratios = [(row["workload"], row["model"], row["of"], row["to"]) for row in rows if row["metric"] == "ratio"]
    big = random_qwen3().name
    assert ratios == [
        ("restore", big, "store", "plain files"),
        ("restore", big, "store", "plain files, one an array"),
        ("restart", big, "restart", "cold"),
        ("restart", "tiny", "restart", "cold"),
        ("write-behind", big, "busy", "at rest"),
        ("write-behind", big, "flooded", "at rest"),
    ]
    for row in rows:
        assert {"policy", "workload", "metric", "value", "unit"} <= row.keys() and np.isfinite(row["value"])
        assert row["value"] > 0 or row["metric"] == "written_bytes_per_s", "so few steps may end within one rest"


def test_the_random_model_is_as_large_as_it_says():
    sizes = [array.size for _, array in tree_flatten(random_qwen3().model.parameters())]
    assert 9e6 < sum(sizes) < 11e6
