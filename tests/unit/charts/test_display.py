"""How charts are shown: in JupyterLab, and as pictures where no network is."""

from __future__ import annotations

import base64
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts import display


def chart(high: float = 1.0) -> Any:
    data = pl.DataFrame({"x": [0, 1], "y": [0.0, high]})
    return alt.Chart(data, title="a line").mark_line().encode(x="x:Q", y="y:Q")


def test_charts_are_for_jupyterlab_and_for_everything_else() -> None:
    data, metadata = display.bundle(chart().to_dict())
    assert data[display.LAB]["$schema"].endswith("vega-lite/v5.json")
    picture = base64.b64decode(data["image/png"])
    width = int.from_bytes(picture[16:20], "big")
    assert round(width / display.SCALE) == metadata["image/png"]["width"]


def test_a_packed_picture_has_the_same_pixels() -> None:
    import zlib

    import vl_convert

    def pixels(png: bytes) -> bytes:
        at, found = 8, b""
        while at < len(png):
            size = int.from_bytes(png[at : at + 4], "big")
            kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
            assert zlib.crc32(kind + data) == int.from_bytes(png[at + 8 + size : at + 12 + size], "big")
            found += data if kind == b"IDAT" else b""
            at += size + 12
        return zlib.decompress(found)

    large = vl_convert.vegalite_to_png(chart().to_dict())
    small = display.packed(large)
    assert pixels(small) == pixels(large) and len(small) < len(large)


def test_importing_the_charts_chooses_a_renderer_that_needs_no_network() -> None:
    import kvlab.charts  # noqa: F401

    assert alt.renderers.active == "kvlab"
    with alt.renderers.enable("png"):
        display.use_in_notebooks()
        assert alt.renderers.active == "png"
