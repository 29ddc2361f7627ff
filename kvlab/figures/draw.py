"""A figure's files: SVG, PNG and HTML, made from its chart alone, so that equal rows give equal bytes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import altair as alt
import vl_convert

from kvlab.figures.figure import Figure
from kvlab.figures.saved import Saved
from kvlab.results.report import EMBED, STYLE, vega_scripts

RENDERER = f"altair {alt.__version__}, vl-convert {vl_convert.__version__}"  # type: ignore[attr-defined]
PNG_SCALE = 1.5


@dataclass(frozen=True)
class Picture:
    """A figure as files, and the hash of the chart's data and specification that they were made from."""

    svg: bytes
    png: bytes
    html: bytes
    chart: str


def draw(figure: Figure, saved: Saved) -> Picture:
    spec = figure.draw(saved).to_dict()
    svg = svg_of(spec)
    png: bytes = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
    return Picture(svg.encode(), png, _page(figure, saved, spec).encode(), chart_hash(spec))


def svg_of(spec: dict[str, Any]) -> str:
    """Number clip paths from 1 in each picture; the renderer counts them over the life of its process."""
    svg: str = vl_convert.vegalite_to_svg(spec)
    numbers: dict[str, int] = {}

    def renumbered(found: re.Match[str]) -> str:
        return f"{found[1]}{numbers.setdefault(found[2], len(numbers) + 1)}"

    return re.sub(r"\b(clip|gradient_)(\d+)", renumbered, svg) + "\n"


def chart_hash(spec: dict[str, Any]) -> str:
    """Return the SHA-256 of data and specification, without the version of the schema."""
    kept = {key: value for key, value in spec.items() if key not in ("$schema", "usermeta")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _page(figure: Figure, saved: Saved, spec: dict[str, Any]) -> str:
    """Return one HTML file with all scripts; its chart shows values and can be exported."""
    claims = "".join(f"<li>{escape(str(verdict))}</li>" for verdict in figure.judge(saved))
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in saved.provenance.items())
    chart = json.dumps(spec, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(figure.title)}</title><style>{STYLE}</style></head><body><main>
<h1>{escape(figure.title)}</h1><p class="lead">{escape(figure.shows)}</p>
<div class="card"><div id="chart"></div></div>
<h2>What it says</h2><div class="card"><ul>{claims}</ul></div>
<h2>Where it comes from</h2><div class="card"><dl>{facts}</dl></div>
</main><script>{vega_scripts()}</script><script>vegaEmbed("#chart", {chart}, {EMBED});</script></body></html>
"""
