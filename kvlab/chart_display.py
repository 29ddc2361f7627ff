"""How a chart is shown where no network is: JupyterLab draws it by itself, everything else gets a picture."""

from __future__ import annotations

import base64
import struct
from typing import Any

import altair as alt
import vl_convert

LAB = "application/vnd.vegalite.v5+json"
"""What JupyterLab and VS Code draw with the Vega-Lite that they bring; they know no later version."""

SCALE = 1.5  # of the picture: sharp enough, and half the bytes of 2
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A Vega-Lite spec as a mimebundle with its metadata: for JupyterLab, and as a PNG for the rest."""
    picture = vl_convert.vegalite_to_png(spec, scale=SCALE)
    width, height = (round(side / SCALE) for side in struct.unpack(">II", picture[16:24]))
    made = {
        LAB: {**spec, "$schema": _SCHEMA},
        "image/png": base64.b64encode(picture).decode(),
        "text/plain": spec_title(spec),
    }
    return made, {"image/png": {"width": width, "height": height}}


def svg(chart: Any) -> str:
    """A chart as an SVG element."""
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return drawn[drawn.index("<svg") :]


def spec_title(spec: dict[str, Any]) -> str:
    """What a chart is called."""
    title = spec.get("title", "")
    return f"<chart: {title['text'] if isinstance(title, dict) else title}>"


def use_in_notebooks() -> None:
    """Have Altair show charts so, unless its user has chosen a renderer: its own default fetches scripts."""
    alt.renderers.register("kvlab", bundle)
    if alt.renderers.active == "default":
        alt.renderers.enable("kvlab")
