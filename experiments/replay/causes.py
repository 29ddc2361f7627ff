"""Draws docs/pictures/recompute-causes.svg from causes.json: `python experiments/replay/causes.py`.

The rows are those of `kvlab replay ../shared/data/kv-cache-tester/sessions.tar.xz --causes --json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import vl_convert

from kvlab.charts import recompute_causes

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parents[1] / "docs" / "pictures" / "recompute-causes.svg"


def main() -> None:
    rows = json.loads((HERE / "causes.json").read_text(encoding="utf-8"))["rows"]
    chart = recompute_causes(pl.DataFrame(rows))
    PICTURE.write_text(vl_convert.vegalite_to_svg(chart.to_dict()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
