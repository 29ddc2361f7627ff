"""The fixed parts of `report.html`: its style for light and dark pages, and the script that draws the charts."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --edge: #e3e6ea; --ink: #1d2127; --soft: #5a626d;
  --rule: #eef0f2; --mark: #2f6db5; }
@media (prefers-color-scheme: dark) { :root { --page: #121418; --card: #1d2127; --edge: #363c45; --ink: #e6e8eb;
  --soft: #a2a9b3; --rule: #2a2f36; --mark: #7fb2ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 60px; }
h1 { font-size: 27px; letter-spacing: -.01em; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 40px 0 12px; }
.lead { color: var(--soft); margin: 0 0 24px; max-width: 84ch; }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 18px 22px;
  margin: 0 0 18px; overflow-x: auto; }
.verdict { font-size: 18px; line-height: 1.5; border-left: 4px solid var(--mark); }
.figure { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: center; }
.figure .vega-embed { padding-right: 0 !important; }
.figure p { flex: 1 1 250px; margin: 0; color: var(--soft); font-size: 14px; }
.figure b { color: var(--ink); display: block; margin-bottom: 4px; font-size: 15px; line-height: 1.4; }
.fold > summary { cursor: pointer; font-weight: 600; }
.fold > summary + * { margin-top: 12px; }
summary { overflow-wrap: anywhere; }
table.kvlab { font-size: 13px; width: 100%; }
table.kvlab td, table.kvlab th { padding-top: 6px !important; padding-bottom: 6px !important; }
table.kvlab tbody tr + tr td { border-top: 1px solid var(--rule); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 24px 12px 40px; } .card { padding: 14px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin: 0 0 6px; } }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.verdict code { font-size: 16px; font-weight: 600; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

EMBED = "{actions: {export: true, source: false, compiled: false, editor: false}}"

SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = "#c9ced6", strong = "#e6e8eb", card = "#1d2127";
// Every tone of kvlab's charts has a dark one; of other greys, light and dark change places.
function shade(text) {
  if (text in tones) return tones[text];
  const named = {white: "#ffffff", black: "#000000"}[text] || text;
  const hex = /^#([0-9a-f]{3}|[0-9a-f]{6})$/i.exec(named);
  if (!hex) return text;
  const full = hex[1].length === 3 ? [...hex[1]].map(c => c + c).join("") : hex[1];
  const parts = [0, 2, 4].map(i => parseInt(full.slice(i, i + 2), 16));
  const light = Math.max(...parts), deep = Math.min(...parts);
  if (light - deep > 28) return text;
  const grey = Math.round(27 + (255 - (light + deep) / 2) * 205 / 255);
  return `rgb(${grey},${grey + 2},${grey + 6})`;
}
function walk(value, key) {
  if (key === "data" || key === "datasets") return value;
  if (typeof value === "string") return shade(value);
  if (Array.isArray(value)) return value.map(one => walk(one, key));
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, walk(one, name)]));
  return value;
}
function themed(spec) {
  if (!dark.matches) return spec;
  const made = walk(spec, "");
  const axis = {labelColor: ink, titleColor: ink};
  const own = {axis, legend: axis, header: axis, text: {color: ink}, rule: {color: ink},
    title: {color: strong, subtitleColor: ink}};
  made.config = made.config || {};
  for (const [name, values] of Object.entries(own)) made.config[name] = {...values, ...made.config[name]};
  made.config.background = card;
  return made;
}
function draw(i) {
  const place = document.getElementById("chart" + i), fold = place.closest("details:not([open])");
  if (fold) fold.addEventListener("toggle", () => draw(i), {once: true});
  else vegaEmbed(place, themed(specs[i]), embed);
}
specs.forEach((_, i) => draw(i));
dark.addEventListener("change", () => specs.forEach((_, i) => draw(i)));
"""
