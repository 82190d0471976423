"""The pages of a real report, opened in Chromium without a network; `make smoke` runs this on its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import LOW_CONTRAST, PROGRAM, REACHABLE, WITHOUT_TEXT, Browser

REPORT = Path(os.environ.get("MEDSTUDY_REPORT", "nowhere"))
PAGES = sorted(REPORT.glob("*.html"))
pytestmark = [
    pytest.mark.skipif(not PAGES, reason="MEDSTUDY_REPORT names no folder with pages"),
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_needs_no_network_and_can_be_read(browser: Browser, page: Path) -> None:
    for width, dark in ((1100, False), (390, False), (1100, True), (390, True)):
        browser.open(page, width, dark)
        browser.js("document.querySelectorAll('details').forEach(folded => folded.open = true)")
        assert browser.complaints() == []
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.js(LOW_CONTRAST) == []
    assert browser.js(WITHOUT_TEXT) == []
    assert browser.js("document.documentElement.lang") == "en"
    assert browser.js("document.querySelectorAll('h1').length") == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_everything_that_can_be_clicked_is_reached_and_used_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    wanted = browser.js(f"{REACHABLE}.length")
    browser.js("window.reached = new Set(); document.addEventListener('focusin', e => reached.add(e.target))")
    for _ in range(wanted + browser.js("document.querySelectorAll('div, pre').length")):
        browser.press("Tab", 9)
        if browser.js(f"{REACHABLE}.every(e => reached.has(e))"):
            break
    assert browser.js(f"{REACHABLE}.filter(e => !reached.has(e)).map(e => e.outerHTML.slice(0, 80))") == []
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") != "none"
    if browser.js("document.querySelector('summary') !== null"):
        browser.js("document.querySelector('summary').focus()")
        browser.press("Enter", 13, "\r")
        assert browser.js("document.querySelector('details').open") is True


def test_what_the_checks_look_for_is_found(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="background: #fff"><p style="color: #999">pale</p><div style="width: 500px">wide</div>'
        '<img src="https://example.org/a.png"><script>console.error("no")</script>'
    )
    browser.open(bad, 390)
    said = " ".join(browser.complaints())
    assert "asks for https://example.org/a.png" in said
    assert "console" in said
    assert browser.js("document.documentElement.scrollWidth") > 390
    assert browser.js(LOW_CONTRAST) == ["2.85: pale"]
    assert len(browser.js(WITHOUT_TEXT)) == 1
