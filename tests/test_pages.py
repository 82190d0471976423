"""The pages of a real report, opened in Chromium without a network; `make smoke` runs this on its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

REPORT = Path(os.environ.get("MEDSTUDY_REPORT", "nowhere"))
PAGES = sorted(REPORT.glob("*.html"))
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(not PAGES, reason="MEDSTUDY_REPORT names no folder with pages"),
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine"),
]

#: Every visible text whose contrast with what is behind it is under WCAG's AA: "ratio: text".
LOW_CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, under) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => a * top[i] + (1 - a) * under[i]);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, text = node.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest('style')) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const back = behind(element), front = over(parse(style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return found;
})()"""
#: Pictures that a screen reader has no words for.
WITHOUT_TEXT = """[...document.querySelectorAll('img, svg')].filter(e => e.checkVisibility()
  && !e.closest('[role=img][aria-label]') && !(e.getAttribute('alt')
    || e.getAttribute('aria-label') || e.querySelector(':scope > title')))
  .map(e => e.outerHTML.slice(0, 80))"""


class Browser:
    """One tab of a Chromium that has no network, through its DevTools protocol."""

    def __init__(self, home: Path) -> None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        # every host but this machine is out of reach
        options += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={home}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([str(PROGRAM), *options, "about:blank"], **quiet)
        self.events: list[dict[str, Any]] = []
        self._number, announced, deadline = 0, home / "DevToolsActivePort", time.monotonic() + 60
        while not announced.is_file() or len(announced.read_text().split()) < 2:
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{announced.read_text().split()[0]}/json") as reply:
            tab = next(target for target in json.load(reply) if target["type"] == "page")
        quick = {"suppress_origin": True, "timeout": 60, "max_size": None}
        self._socket = websocket.create_connection(tab["webSocketDebuggerUrl"], **quick)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; events that come meanwhile are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self.events.append(message)

    def open(self, page: Path, width: int = 1100, dark: bool = False) -> None:
        """Show a file at a width, in the light or the dark scheme."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv()))

    def js(self, expression: str) -> Any:
        """Value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """Requests that left the page or failed, and what was written to the console."""
        said = []
        for event in self.events:
            method, what = event["method"], event["params"]
            if method == "Network.requestWillBeSent" and not what["request"]["url"].startswith(("file:", "data:")):
                said.append(f"asks for {what['request']['url']}")
            if method == "Network.loadingFailed":
                said.append(f"failed request: {what['errorText']}")
            if method in {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
                said.append(f"console: {json.dumps(what)[:200]}")
        return said


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.process.kill()
    opened.process.wait()


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


def test_no_check_of_the_study_failed() -> None:
    """The smoke study's numbers mean nothing, but they are made as they claim to be."""
    assert "A failed check means" not in (REPORT / "index.html").read_text(encoding="utf-8")
