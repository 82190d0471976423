"""The example that ships: what it links to is there, it is small, and it names no place on a machine."""

from __future__ import annotations

import re
from pathlib import Path

from medstudy.studies import load_study

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "example"


def test_every_link_leads_somewhere_and_each_task_has_a_notebook() -> None:
    pages = {file: file.read_text(encoding="utf-8") for file in EXAMPLE.rglob("*.html")}
    for page, text in pages.items():
        for link in re.findall(r'href="([^"#:]+)"', text):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
    for task in load_study("params/demo").tasks:
        assert any(page.name.startswith(task) for page in pages)
    assert "comparison.html" in pages[EXAMPLE / "index.html"]


def test_it_is_small_and_names_no_machine() -> None:
    files = [file for file in EXAMPLE.rglob("*.*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6e6
    for file in files:
        assert not re.search(r"/(home|tmp|root|Users|work)/", file.read_text(encoding="utf-8")), file.name
