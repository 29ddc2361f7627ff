"""`report.html`: one file with verdict, table, charts and answers, their provenance, and all that draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

import altair as alt
import vl_convert

from kvlab.charts.colors import TONES
from kvlab.results import Results
from kvlab.results.captions import ReportFigure, figures_of_rows, live_figure, pareto_figure
from kvlab.results.eviction_figures import evicted_requests, map_figure, strips_figure
from kvlab.results.load import OTHER_LOAD
from kvlab.results.points import Point, points_of
from kvlab.results.promote import serve_line
from kvlab.results.report_page import EMBED, SCRIPT, STYLE
from kvlab.results.said import answer_sheet, sheet_html
from kvlab.results.tables import results_html
from kvlab.results.verdict import verdict
from kvlab.results.wording import marked

MAX_QUESTIONS = 40
"""Questions whose answers a report holds; all are in the rows."""
READ = """from kvlab.results import Results
results = Results.load("the folder of this page")
results.frame()              # the tidy rows, a Polars frame
results.answers()            # what every policy said, a row for each request and policy
results.events("evicted")    # what happened, a frame for each kind of event"""


def write_run(results: Results, folder: Path, *, title: str, lead: str) -> Path:
    """Save the run in `folder`, write its report, and return the report's path."""
    results.save(folder)
    return write_report(results, folder, title=title, lead=lead)


def write_report(results: Results, folder: Path, *, title: str, lead: str) -> Path:
    """Write `report.html` beside a saved run, and return its path."""
    path = folder / "report.html"
    path.write_text(report_html(results, title=title, lead=lead), encoding="utf-8")
    return path


def report_html(results: Results, *, title: str, lead: str) -> str:
    """Return one page that holds all scripts and data."""
    page = _Page(results)
    body = "".join(page.parts())
    specs = json.dumps([figure.chart.to_dict() for figure in page.figures], separators=(",", ":"))
    script = specs.replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>
<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>
{body}
</main><script>{vega_scripts()}</script><script>
const specs = {script};
const embed = {EMBED};
const tones = {json.dumps({tone.light: tone.dark for tone in TONES})};
{SCRIPT}</script></body></html>
"""


def figures(results: Results) -> list[ReportFigure]:
    """Return the charts that these results have data for, in the order of the page."""
    page = _Page(results)
    list(page.parts())
    return page.figures


class _Page:
    """The parts of a page, in their order; `figures` are the charts that they have places for."""

    def __init__(self, results: Results) -> None:
        self.results, self.figures = results, list[ReportFigure]()
        self.points = points_of(results.frame())
        self.among, self.labels = results.policies, results.labels()

    def parts(self) -> Iterator[str]:
        """Yield HTML: verdict and Pareto line, table, answers, charts, evictions, provenance."""
        facts = self.results.provenance
        for point in self.points:
            heading = f"<div style='opacity:.7;font-size:80%'>{escape(point.name)}</div>" if point.name else ""
            said = verdict(point.rows, facts, self.labels)
            yield f"<div class='card verdict'>{heading}{said.html()}</div>"
        first, *others = self.points
        yield from self._point(first)
        for point in others:
            inside = "".join(self._point(point))
            yield f"<details class='fold'><summary>{escape(point.name)}</summary><div>{inside}</div></details>"
        yield from self._events()
        yield from self._provenance()

    def _point(self, point: Point) -> Iterator[str]:
        if pareto := pareto_figure(point.rows, self.labels):
            yield self._card(pareto)
        yield f"<div class='card'>{results_html(point.rows, self.among)}</div>"
        if sheet := sheet_html(answer_sheet(point.rows, MAX_QUESTIONS), self.among):
            yield f"<h2>What it said</h2><div class='card'>{sheet}</div>"
        charts = [self._card(figure) for figure in figures_of_rows(point.rows, self.labels)]
        if charts:
            yield f"<h2>What to see</h2>{''.join(charts)}"

    def _events(self) -> Iterator[str]:
        tokens = self.results.events("token")
        if not tokens.is_empty():
            events = (tokens, self.results.events("finished"), self.results.events("submitted"))
            yield self._card(live_figure(*events, self.labels))
        found = evicted_requests(self.results.recorders)
        if not found:
            return
        yield f"<h2>What was evicted</h2>{self._card(strips_figure(found, self.labels))}"
        for policy, one in found.items():
            name = marked(f"`{self.labels.get(policy, policy)}`, layer by layer")
            card = self._card(map_figure(policy, one, self.labels), plain=True)
            yield f"<details class='card fold'><summary>{name}</summary>{card}</details>"

    def _provenance(self) -> Iterator[str]:
        facts = dict(self.results.provenance)
        load = facts.pop(OTHER_LOAD, None) or {}
        shares = [
            f"{self.labels.get(p, p)} {', '.join(f'{share:.0%}' for share in found)}" for p, found in load.items()
        ]
        facts |= {"CPU time of other programs": "; ".join(shares)} if shares else {}
        if command := facts.pop("command", None):
            yield f"<h2>The command that made it</h2><div class='card'><pre>{escape(str(command))}</pre></div>"
        lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
        yield f"<h2>Where it comes from</h2><div class='card'><dl>{lines}</dl></div>"
        yield f"<h2>Read it again</h2><div class='card'><pre>{escape(READ)}</pre></div>"
        serve = "\n".join(serve_line(policy, facts) for policy in self.results.policies)
        yield f"<h2>Serve one of them</h2><div class='card'><pre>{escape(serve)}</pre></div>"

    def _card(self, figure: ReportFigure, *, plain: bool = False) -> str:
        self.figures.append(figure)
        number = len(self.figures) - 1
        kind = "figure" if plain else "card figure"
        return (
            f"<div class='{kind}'><div id='chart{number}'></div>"
            f"<p><b>{marked(figure.see)}</b>{marked(figure.why)}</p></div>"
        )


@cache
def vega_scripts() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, from vl-convert's own copy: nothing is fetched."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = vl_convert.get_vegalite_versions()
    chosen = version if version in known else known[-1]
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=chosen)
    return bundle.replace("</script", "<\\/script")
