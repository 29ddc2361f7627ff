"""The dashboard in a browser: the figures of the state, nothing cut at any width, in light and in dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlab.models import LoadedModel
from tests.server_kit import Local, chat

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SYSTEM = {"role": "system", "content": "You are a helper. The code of @mira is #417. " * 20}
IN_VIEW = """() => [...document.querySelectorAll('td, th, .card, h2, b, svg, #models')]
    .filter(e => e.offsetParent !== null || e instanceof SVGElement)
    .filter(e => { const box = e.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth + 0.5; })
    .map(e => e.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def served(bundled: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """A server that has answered three turns of one conversation, and was sampled meanwhile."""
    folder: Path = tmp_path_factory.mktemp("store")
    with Local(f"tiered:dir={folder / 'a_folder_with_a_long_name_that_no_line_has_room_for'}", bundled) as server:
        messages: list[Any] = [SYSTEM]
        history = server.handle.app.state.service.metrics.history
        for i in range(3):
            history.sample()
            body = chat("") | {"messages": [*messages, {"role": "user", "content": f"What is the code, {i}?"}]}
            made = server.post("/v1/chat/completions", body).json()
            messages = [*body["messages"], made["choices"][0]["message"]]
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install chromium to look at the dashboard")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, url: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url, timeout=60_000)
    page.locator("#latest tr").nth(3).wait_for(state="attached", timeout=60_000)
    return page, errors


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (420, "dark"), (320, "light")])
def test_nothing_is_cut(served: Local, browser: Any, width: int, scheme: str) -> None:
    page, errors = opened(browser, served.url, width, scheme)
    assert page.evaluate(IN_VIEW) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    shown = page.locator("#latest").inner_text()
    for text in ("/v1/chat/completions", "new text behind cached text", "%)"):
        assert text in shown
    page.close()


def test_the_page_shows_tokens_and_what_was_before_it(served: Local, browser: Any) -> None:
    page, _ = opened(browser, served.url, 1180, "light")
    state = served.get("/kvlab/state").json()
    totals = state["totals"]
    computed = sum(
        float(number)
        for number in page.locator("#reasons [data-value]").evaluate_all("all => all.map(e => e.dataset.value)")
    )
    assert computed == totals["prompt_tokens_total"] - sum(totals["cached_tokens_total"].values())
    assert computed > len(state["latest"]) * 5
    rows = page.locator("#latest tr").all_inner_texts()[1:]
    assert [row.count("new text behind cached text") for row in rows] == [1, 1, 0]
    assert "never seen" in rows[2] and "(0%)" in rows[2]
    lines = page.locator("#tiers polyline").evaluate_all(
        "all => all.map(e => e.getAttribute('points').split(' ').length)"
    )
    assert min(lines) >= 4
    page.close()
