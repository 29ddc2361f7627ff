"""How a chart is shown where no network is: JupyterLab draws it by itself, everything else gets a picture."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import altair as alt
import vl_convert

LAB = "application/vnd.vegalite.v5+json"
"""What JupyterLab and VS Code draw with the Vega-Lite that they bring; they know no later version."""

SCALE = 1.5  # of the picture: sharp enough, and half the bytes of 2
_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a mimebundle with metadata: a Vega-Lite spec for JupyterLab, a PNG for other programs."""
    picture = packed(vl_convert.vegalite_to_png(spec, scale=SCALE))
    width, height = (round(side / SCALE) for side in struct.unpack(">II", picture[16:24]))
    made = {
        LAB: {**spec, "$schema": _SCHEMA, "config": on_white(spec.get("config", {}))},
        "image/png": base64.b64encode(picture).decode(),
        "text/plain": spec_title(spec),
    }
    return made, {"image/png": {"width": width, "height": height}}


def on_white(config: dict[str, Any]) -> dict[str, Any]:
    """Return a chart's config with its own background and text colour, which JupyterLab's dark theme would replace."""
    ink = {"labelColor": "#444", "titleColor": "#444"}
    own: dict[str, Any] = {"axis": ink, "legend": ink, "header": ink}
    own["title"] = {"color": "#1d2127", "subtitleColor": "#666"}
    made = {name: {**values, **config.get(name, {})} for name, values in own.items()}
    return {**config, **made, "background": "white"}


def svg(chart: Any) -> str:
    """Return a chart as an SVG element."""
    drawn: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return drawn[drawn.index("<svg") :]


def packed(picture: bytes) -> bytes:
    """Compress a PNG again, losslessly; for charts a fifth of the bytes remains."""
    chunks, at = [], 8
    while at < len(picture):
        size = int.from_bytes(picture[at : at + 4], "big")
        chunks.append((picture[at + 4 : at + 8], picture[at + 8 : at + 8 + size]))
        at += size + 12
    pixels = zlib.compress(zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT")), 9)
    kept = [(kind, data) for kind, data in chunks if kind not in (b"IDAT", b"IEND")]
    made = picture[:8]
    for kind, data in [*kept, (b"IDAT", pixels), (b"IEND", b"")]:
        made += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return made


def spec_title(spec: dict[str, Any]) -> str:
    """Return the title of a chart."""
    title = spec.get("title", "")
    return f"<chart: {title['text'] if isinstance(title, dict) else title}>"


def use_in_notebooks() -> None:
    """Register this display with Altair unless its user has chosen a renderer; Altair's default fetches scripts."""
    renderer: Any = bundle
    alt.renderers.register("kvlab", renderer)
    if alt.renderers.active == "default":
        alt.renderers.enable("kvlab")
