"""Keeps what belongs to a patient out of what is sent: a scan of everything that lies outside ``private/``.

The scan looks for known text of a study's own cases and for a few patterns. It finds copies, not
paraphrases, and says nothing of pixels: finding nothing is no proof that a file is de-identified.
"""

from __future__ import annotations

import html
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: So many words of a case in a row count as a copy.
WORDS = 6
#: Wording that more than this share of the cases has (and more than COMMON_CASES) is the form, no patient's.
COMMON_SHARE, COMMON_CASES = 0.05, 5
#: Smallest count of patients that a table of a private source shows.
SMALLEST_COUNT = 11
#: Never to be sent, whoever wrote it.
PATTERNS = {
    "e-mail address": r"\b[\w.+-]+@[\w-]+(\.[\w-]+)*\.[a-z]{2,}\b",
    "US social security number": r"\b\d{3}-\d{2}-\d{4}\b",
    "access token": r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA[A-Z0-9]{16})\b",
}
_BINARY = {".parquet", ".pdf", ".safetensors", ".pt", ".lock"}


@dataclass(frozen=True)
class Hit:
    """A place where something of a case was found, and by which rule; never what was found."""

    file: str
    place: str
    rule: str

    def __str__(self) -> str:
        return f"{self.file}{f', {self.place}' if self.place else ''}: {self.rule}"


@dataclass
class Guard:
    """What is known of the cases that must not be seen: hashes of word runs, and identifier-like tokens."""

    runs: set[int] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    cases: int = 0

    def add(self, table: Any) -> None:
        """Learn the cases of a ``cases.parquet`` (`Run.keep_source`)."""
        counts: Counter[int] = Counter()
        for row in table.to_dict("records"):
            counts.update({run for text in row["texts"] for run in _runs(text)})
            self.marks.update(mark for text in (*row["texts"], *row["ids"]) for mark in _marks(text))
            self.marks.update(str(name) for name in row["ids"] if len(str(name)) >= 4)
        most = max(COMMON_CASES, COMMON_SHARE * len(table))
        self.runs |= {run for run, n in counts.items() if n <= most}
        self.cases += len(table)

    def rules_broken(self, text: str) -> list[str]:
        """Names of the rules that ``text`` breaks."""
        broken = [name for name, pattern in PATTERNS.items() if re.search(pattern, text, re.IGNORECASE)]
        if any(run in self.runs for run in _runs(text)):
            broken.append(f"{WORDS} words in a row of a case")
        if not self.marks.isdisjoint(_tokens(text)):
            broken.append("identifier, date or number of a case")
        return broken

    def scan(self, file: Path, name: str) -> list[Hit]:
        """What is found in one file; notebooks cell by cell."""
        return [Hit(name, place, rule) for place, text in _texts(file) for rule in self.rules_broken(text)]


def guard_of(run_folders: Iterable[Path]) -> Guard:
    """A guard that knows the cases of every run whose source is not shareable."""
    import pandas as pd

    guard = Guard()
    for folder in run_folders:
        source = folder / "private" / "source.json"
        if source.is_file() and not json.loads(source.read_text(encoding="utf-8"))["shareable"]:
            guard.add(pd.read_parquet(folder / "private" / "cases.parquet"))
    return guard


def files_outside_private(study: Path) -> list[Path]:
    """Every file of a study's results that may be sent, in order."""
    found = (path for path in sorted(study.rglob("*")) if path.is_file())
    return [path for path in found if "private" not in path.relative_to(study).parts]


def scan_study(study: Path, guard: Guard) -> tuple[list[Hit], int]:
    """Hits in all files of a study outside ``private/``, and how many files were read."""
    files = [path for path in files_outside_private(study) if path.suffix not in _BINARY]
    return [hit for path in files for hit in guard.scan(path, str(path.relative_to(study)))], len(files)


def withhold(notebook: Any, guard: Guard) -> list[str]:
    """Take out of an executed notebook, in place, what must not leave ``private/``.

    Of a cell that raised only the kind of error is left: its message may quote a case.

    Returns:
        Places and rules of other outputs that were taken out.
    """
    taken = []
    for number, cell in enumerate(notebook.cells, start=1):
        outputs = cell.get("outputs", [])
        raised = [output for output in outputs if output.output_type == "error"]
        broken = sorted({rule for output in outputs for rule in guard.rules_broken(_output_text(output))})
        if raised:
            cell.outputs = [_stream(f"{raised[0].ename}: withheld, see private/notebook.ipynb")]
        elif broken:
            taken.append(f"cell {number}: {', '.join(broken)}")
            cell.outputs = [_stream(f"withheld: {', '.join(broken)}; see private/notebook.ipynb")]
    return taken


def _stream(text: str) -> Any:
    import nbformat

    return nbformat.v4.new_output("stream", name="stderr", text=f"{text}\n")


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    if file.suffix == ".png":
        yield "metadata", " ".join(_png_text(file.read_bytes()))
        return
    text = file.read_text(encoding="utf-8", errors="ignore")
    if file.suffix != ".ipynb":
        yield "", _plain(text)
        return
    notebook = json.loads(text)
    yield "metadata", json.dumps(notebook["metadata"], ensure_ascii=False)
    for number, cell in enumerate(notebook["cells"], start=1):
        parts = ["".join(cell["source"]), *map(_output_text, cell.get("outputs", []))]
        yield f"cell {number}", "\n".join(parts)


def _output_text(output: Any) -> str:
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    parts += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/p")]
    return _plain("\n".join("".join(part) if isinstance(part, list) else str(part) for part in parts))


def _plain(text: str) -> str:
    """Without markup, embedded images and terminal colours."""
    text = re.sub(r"data:image/[^;]+;base64,[A-Za-z0-9+/=\s]+|\x1b\[[0-9;]*m", " ", text)
    return html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL))


def _png_text(data: bytes) -> Iterator[str]:
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind in (b"tEXt", b"iTXt"):
            yield body.decode("utf-8", "ignore")
        elif kind == b"zTXt":
            yield zlib.decompress(body.split(b"\0", 1)[1][1:]).decode("utf-8", "ignore")
        place += 12 + length


def _runs(text: str) -> Iterator[int]:
    """Hashes of all runs of `WORDS` words; of a shorter text, of the whole if it has four words at least."""
    words = re.findall(r"\w+", text.casefold())
    if 4 <= len(words) < WORDS:
        yield zlib.crc32(" ".join(words).encode())
    for i in range(len(words) - WORDS + 1):
        yield zlib.crc32(" ".join(words[i : i + WORDS]).encode())


def _marks(text: str) -> list[str]:
    """Tokens that look like an identifier or a date: six characters at least, a digit, no plain decimal."""
    return [
        token
        for token in _tokens(text)
        if len(token) >= 6 and re.search(r"\d", token) and not re.fullmatch(r"-?\d+\.\d+", token)
    ]


def _tokens(text: str) -> list[str]:
    """Words with the signs that hold identifiers and dates together."""
    return [token.strip(".:+-/") for token in re.findall(r"[\w./:+-]+", str(text))]
