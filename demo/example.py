"""docs/example: a part of the demo's report that ships, one notebook a task, and the study's tables.

Written by `python -m demo.example results/demo/report` after `medstudy run params/demo`. Links to pages that are left
out become plain text, and the index says so.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from medstudy.params import project_root

#: Pages of this model and seed are kept, besides those of the whole study.
KEPT = ("builtin-llama-seed0.html", "builtin-llama-model.md", "builtin-llama-data.md")
WHOLE = ("index.html", "comparison.html", "checklist.html", "methods.md")
NOTE = (
    "<p><em>An example that ships with medstudy: of {} notebooks one a task is included; links to the others are cut. "
    "Settings are from earlier searches on other validation cases, and the demo was run several times on these test "
    "cases (docs/settings.md): intervals are not corrected for that.</em></p>"
)


def example(report: Path, target: Path) -> int:
    """Copy ``report`` into ``target``, which is replaced; returns its size in bytes."""
    shutil.rmtree(target, ignore_errors=True)
    files = [file for file in report.rglob("*.*") if file.name in WHOLE or file.name.endswith(KEPT)]
    there = {file.relative_to(report).as_posix() for file in files}
    note = NOTE.format(sum(1 for _ in report.glob("*-seed*.html")))
    for name in sorted(there):
        text = (report / name).read_text(encoding="utf-8")
        if name.endswith(".html"):
            text = re.sub(
                r'<a href="([^"#:]+)"[^>]*>(.*?)</a>', lambda link: link[0] if link[1] in there else link[2], text
            )
            text = text.replace("</h1>", f"</h1>\n{note}", 1) if name == "index.html" else text
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
    for file in (report.parent / "verdicts.csv", *(report.parent / "tables").glob("*.csv")):
        (target / "tables").mkdir(exist_ok=True)
        shutil.copy(file, target / "tables" / file.name)
    return sum(file.stat().st_size for file in target.rglob("*.*"))


if __name__ == "__main__":
    print(f"docs/example: {example(Path(sys.argv[1]), project_root() / 'docs' / 'example') / 1e6:.1f} MB")
