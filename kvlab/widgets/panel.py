"""The base of all widgets: controls, a picture that is drawn again at every change, and one line for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets
from IPython.display import display

from kvlab.charts.display import bundle, svg
from kvlab.errors import KvlabError

CARD = "display:inline-block;background:#fff;border-radius:8px;padding:8px 12px;max-width:100%;overflow-x:auto"
NOTE = "font-size:13px;line-height:1.5;margin:4px 0 8px;max-width:920px"
WRONG = "font-size:13px;padding:4px 10px;border-left:3px solid #c8372d;background:rgba(200,55,45,.14);margin:4px 0"


@dataclass(frozen=True)
class Drawn:
    """The content of a panel under its controls: a note in HTML, then HTML or a chart."""

    note: str = ""
    html: str = ""
    chart: Any = None


class Panel:
    """Controls over one picture. ``draw`` gets the controls' values by name and returns what to show.

    Shown as a widget where a kernel runs, and as the picture of the moment in every other place. A KvlabError of
    ``draw`` becomes one line over the last good picture.
    """

    def __init__(self, controls: Mapping[str, Any], draw: Callable[..., Drawn], *extra: Any) -> None:
        self.controls = dict(controls)
        self._draw = draw
        self._busy = False
        self.drawn = Drawn()
        self.message = ""
        self._message = ipywidgets.HTML()
        self._picture = ipywidgets.HTML()
        row = ipywidgets.HBox([*self.controls.values(), *extra])
        row.layout.flex_flow, row.layout.align_items = "row wrap", "center"
        self.box = ipywidgets.VBox([row, self._message, self._picture])
        self.box.add_class("kvlab-panel")
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self.refresh()

    @property
    def values(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> None:
        """Set controls by name, as a click would. Raises KvlabError for a control that is not there."""
        for name, value in values.items():
            if name not in self.controls:
                raise KvlabError(f"no control {name!r}; there are {', '.join(self.controls)}")
            self.controls[name].value = value

    def refresh(self) -> None:
        """Draw again."""
        self._busy = True  # a control that is changed while drawing does not draw again
        try:
            self.drawn, self.message = self._draw(**self.values), ""
        except KvlabError as error:
            self.message = " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 - a user's own scorer may raise anything, and a widget shows no traceback
            self.message = " ".join(f"{type(error).__name__}: {error}".split())
        finally:
            self._busy = False
        self._message.value = f"<div style='{WRONG}'>{escape(self.message)}</div>" if self.message else ""
        if not self.message:
            self._picture.value = live_html(self.drawn)

    def _changed(self, _: Any) -> None:
        if not self._busy:
            self.refresh()

    def _ipython_display_(self) -> None:
        static, metadata = static_bundle(self.drawn)
        live = self.box._repr_mimebundle_() or {}
        display({**static, **live, "text/plain": static["text/plain"]}, metadata=metadata, raw=True)


def live_html(drawn: Drawn) -> str:
    """Return content as HTML; a chart as SVG on white, as its colours are for light pages."""
    note = f"<div style='{NOTE}'>{drawn.note}</div>" if drawn.note else ""
    chart = f"<div style='{CARD}'>{svg(drawn.chart)}</div>" if drawn.chart is not None else ""
    return f"{note}{drawn.html}{chart}"


def static_bundle(drawn: Drawn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the picture for pages without a kernel, as a mimebundle with metadata: HTML, or the chart as a PNG."""
    if drawn.chart is None:
        return {"text/html": live_html(drawn), "text/plain": "<kvlab panel>"}, {}
    made, metadata = bundle(drawn.chart.to_dict())
    return {name: made[name] for name in ("image/png", "text/plain")}, metadata
