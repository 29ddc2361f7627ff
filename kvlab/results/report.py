"""`report.html`: one file with the table, the charts, an explanation of each, and the provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from kvlab import charts
from kvlab.results import Results
from kvlab.results.summary import html_table
from kvlab.results.void import valid

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1d2127;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 36px 24px 60px; }
h1 { font-size: 27px; letter-spacing: -.01em; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
.lead { color: #5a626d; margin: 0 0 24px; max-width: 84ch; }
.card { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px; padding: 18px 22px; margin: 0 0 18px;
  overflow-x: auto; }
.figure { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: center; }
.figure .vega-embed { padding-right: 0 !important; }
.figure p { flex: 1 1 250px; margin: 0; color: #39414b; font-size: 14px; }
.figure b { color: #1d2127; display: block; margin-bottom: 4px; font-size: 15px; line-height: 1.4; }
table.kvlab { font-size: 13px; width: 100%; }
table.kvlab td, table.kvlab th { padding-top: 6px !important; padding-bottom: 6px !important; }
table.kvlab tbody tr + tr td { border-top: 1px solid #eef0f2; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0; font-size: 14px; }
dt { color: #5a626d; } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 0; overflow-x: auto; }
"""
EMBED = "{actions: {export: true, source: false, compiled: false, editor: false}}"
READ = """from kvlab.results import Results
results = Results.load("the folder of this page")
results.frame()              # the tidy rows, a Polars frame
results.events("evicted")    # what happened, a frame for each kind of event"""


@dataclass(frozen=True)
class ReportFigure:
    """A chart, one sentence on what it shows, and the reason (HTML)."""

    chart: Any
    see: str
    why: str


def write_run(results: Results, folder: Path, *, title: str, lead: str) -> Path:
    """Save the run in `folder`, write its report, and return the report's path."""
    results.save(folder)
    path = folder / "report.html"
    path.write_text(report_html(results, title=title, lead=lead), encoding="utf-8")
    return path


def report_html(results: Results, *, title: str, lead: str) -> str:
    """Return one page that holds all scripts and data."""
    found = list(figures(results))
    specs = json.dumps([figure.chart.to_dict() for figure in found], separators=(",", ":")).replace("<", "\\u003c")
    cards = "".join(
        f"<div class='card figure'><div id='chart{i}'></div><p><b>{figure.see}</b>{figure.why}</p></div>"
        for i, figure in enumerate(found)
    )
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in results.provenance.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>
<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>
<div class="card">{html_table(results.frame())}</div>
<h2>What to see</h2>{cards}
<h2>Where it comes from</h2><div class="card"><dl>{facts}</dl></div>
<h2>Read it again</h2><div class="card"><pre>{escape(READ)}</pre></div>
</main><script>{vega_scripts()}</script><script>
const specs = {specs};
specs.forEach((spec, i) => vegaEmbed("#chart" + i, spec, {EMBED}));
</script></body></html>
"""


def figures(results: Results) -> Iterator[ReportFigure]:
    """Yield the charts that these results have data for."""
    rows = results.frame()
    turns: Any = rows["turn"].max()
    if turns and turns > 1:
        why = "Without reuse the whole prompt is computed at every turn, so the line climbs with the conversation."
        if "restart" in rows["phase"].to_list():
            why += " At the diamond a new process took over: the line stays low where KV came back from the SSD."
        yield ReportFigure(charts.ttft_by_turn(rows), "With reuse, a turn costs only its new tokens.", why)
        yield ReportFigure(
            charts.cached_tokens_by_turn(rows),
            "The nearer to the dashed line, the less is computed.",
            "The distance to it is what the turn added: a tool result, an answer, the new question. "
            "Zero means that nothing was kept between requests.",
        )
    tokens = results.events("token")
    if not tokens.is_empty():
        yield ReportFigure(
            charts.kv_bytes_over_time(tokens, results.events("finished"), results.events("submitted")),
            "Height is memory, width is time for the whole workload.",
            "Every tooth is a request. A window puts a ceiling on the teeth, a codec makes them smaller by its factor, "
            "reuse brings them closer together.",
        )
    graded = valid(rows)
    if "accuracy" in set(graded["metric"]):
        yield ReportFigure(
            charts.accuracy_by_policy(graded),
            "What was dropped cannot be answered.",
            "A window keeps the last tokens: what needs only the last message goes well, questions about what was said "
            "long before fail. Lossless policies must equal <code>full</code>.",
        )
    for policy, recorder in results.recorders.items():
        evicted = recorder.frame("evicted")
        if evicted.is_empty():
            continue
        sizes = recorder.frame("submitted").join(recorder.frame("finished"), on="request", how="left")
        longest = sizes.join(evicted, on="request", how="semi").sort("prompt_tokens").tail(1).to_dicts()[0]
        steps = longest["tokens"] or 0  # not known of a request that did not finish
        length = longest["prompt_tokens"] + steps
        chart = charts.eviction_map(evicted, request=longest["request"], length=length, steps=steps)
        yield ReportFigure(
            chart,
            f"What <code>{escape(policy)}</code> dropped, and when.",
            "The longest request. No later token of that layer and head can attend to a coloured position. A window "
            "drops a stripe; a scorer drops what it holds to matter least, head by head.",
        )


@cache
def vega_scripts() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, from vl-convert's own copy: nothing is fetched."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = vl_convert.get_vegalite_versions()
    chosen = version if version in known else known[-1]
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=chosen)
    return bundle.replace("</script", "<\\/script")
