"""Keeps what belongs to a patient out of what is sent: a scan of everything that lies outside ``private/``.

The scan looks for known text of a study's own cases and for a few patterns. It finds copies, not
paraphrases, and says nothing of pixels: finding nothing is no proof that a file is de-identified.
"""

from __future__ import annotations

import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: So many words of a case in a row count as a copy.
WORDS = 6
#: Wording that more than this share of the groups has (and more than COMMON_GROUPS) is no patient's.
COMMON_SHARE, COMMON_GROUPS = 0.05, 5
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
    """What is known of the cases that must not be seen: runs of words, and identifier-like tokens.

    ``cases`` holds the (card, case id) pairs that it has learnt.
    """

    runs: set[int] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    cases: set[tuple[str, str]] = field(default_factory=set)

    def add(self, table: Any, card: str = "", known: str = "") -> None:
        """Learn the cases of a ``cases.parquet`` (`Run.keep_source`).

        Wording that many groups share is the form and no patient's, and so are the words of the card.

        Args:
            table: columns case_id, group_id, texts, ids.
            card: name of the data card.
            known: what the card itself says (question, labels, column names).
        """
        groups: dict[str, dict[Any, set[str]]] = {"runs": {}, "marks": {}}
        for row in table.to_dict("records"):
            for text in row["texts"]:
                for run in _runs(text):
                    groups["runs"].setdefault(run, set()).add(row["group_id"])
                for mark in _marks(text):
                    groups["marks"].setdefault(mark, set()).add(row["group_id"])
            # an identifier is one however often it comes; four digits alone are any number
            self.marks |= {i for i in map(str.casefold, row["ids"]) if len(i) >= (6 if i.isdigit() else 4)}
            self.cases.add((card, row["case_id"]))
        most = max(COMMON_GROUPS, COMMON_SHARE * table["group_id"].nunique())
        own = set(_tokens(known))
        self.runs |= {run for run, seen in groups["runs"].items() if len(seen) <= most}
        self.marks |= {m for m, seen in groups["marks"].items() if len(seen) <= most and m not in own}

    def rules_broken(self, text: str) -> list[str]:
        """Names of the rules that ``text`` breaks, as it stands or without markup."""
        return sorted({rule for form in (text, _plain(text)) for rule in self._broken(form)})

    def _broken(self, text: str) -> list[str]:
        broken = [name for name, pattern in PATTERNS.items() if re.search(pattern, text, re.IGNORECASE)]
        # a guard that knows no cases need not take texts apart
        if self.runs and not self.runs.isdisjoint(_runs(text, scanned=True)):
            broken.append(f"{WORDS} words in a row of a case")
        if self.marks and not self.marks.isdisjoint(_tokens(text)):
            broken.append("identifier, date or number of a case")
        return broken

    def scan(self, file: Path, name: str) -> list[Hit]:
        """What is found in one file; notebooks cell by cell."""
        return [Hit(name, place, rule) for place, text in _texts(file) for rule in self.rules_broken(text)]


def guard_of(run_folders: Iterable[Path]) -> Guard:
    """A guard that knows the cases of every run, finished or not, whose source is not shareable."""
    import pandas as pd

    guard = Guard()
    for folder in run_folders:
        source, cases = (folder / "private" / name for name in ("source.json", "cases.parquet"))
        if source.is_file() and not (said := json.loads(source.read_text(encoding="utf-8")))["shareable"]:
            guard.add(pd.read_parquet(cases), said["card"], said["known"])
    return guard


def run_folders(study: Path) -> list[Path]:
    """Folders of all runs of a study that got as far as reading their source."""
    return [file.parents[1] for file in sorted(study.glob("*/*/seed*/private/source.json"))]


def files_outside_private(study: Path) -> list[Path]:
    """Every file of a study's results that may be sent, in order."""
    found = (path for path in sorted(study.rglob("*")) if path.is_file())
    return [path for path in found if "private" not in path.relative_to(study).parts]


def scan_study(study: Path, guard: Guard) -> tuple[list[Hit], int]:
    """Hits in all files of a study outside ``private/``, and how many files were read."""
    files = [path for path in files_outside_private(study) if path.suffix not in _BINARY]
    return [hit for path in files for hit in guard.scan(path, str(path.relative_to(study)))], len(files)


def share(notebook: Path, target: Path, results: Path) -> tuple[list[str], int, int]:
    """Write a copy of an executed notebook without what repeats a case of any run in ``results``.

    For notebooks that ran in JupyterLab or by plain papermill, which nobody looked at before.

    Returns:
        Places and rules of what was taken out, how many runs were found, and how many private cases they
        have; without any run there is nothing to compare with, and no copy is written.
    """
    runs = [folder for study in sorted(results.glob("*")) for folder in run_folders(study)]
    guard = guard_of(runs)
    return withhold(notebook, target, guard) if runs else [], len(runs), len(guard.cases)


def withhold(notebook: Path, target: Path, guard: Guard) -> list[str]:
    """Write a copy of an executed notebook without what must not leave ``private/``.

    Of a cell that raised only the kind of error is left: its message may quote a case. Widgets' state,
    attachments and the metadata of outputs go unread and are left out.

    Returns:
        Places and rules of other outputs, and of sources, that were taken out.
    """
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    taken = []
    for number, cell in enumerate(content.cells, start=1):
        cell.pop("attachments", None)
        outputs = cell.get("outputs", [])
        raised = [output for output in outputs if output.output_type == "error"]
        said = list(map(_output_text, outputs))
        # a sentence may be spread over several outputs
        broken = sorted({rule for text in [*said, " ".join(said)] for rule in guard.rules_broken(text)})
        if raised:
            cell.outputs = [_stream(f"{raised[0].ename}: withheld")]
        elif broken:
            cell.outputs = [_stream(f"withheld: {', '.join(broken)}")]
            taken.append(f"cell {number}: {', '.join(broken)}")
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
        if typed := guard.rules_broken(cell.source):
            cell.source = f"# withheld: {', '.join(typed)}"
            taken.append(f"cell {number}, source: {', '.join(typed)}")
    nbformat.write(content, target)
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
        yield "", text
        return
    notebook = json.loads(text)
    yield "metadata", json.dumps(notebook["metadata"], ensure_ascii=False)
    for number, cell in enumerate(notebook["cells"], start=1):
        parts = ["".join(cell["source"]), *map(_output_text, cell.get("outputs", []))]
        yield f"cell {number}", "\n".join(parts)


def _output_text(output: Any) -> str:
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    parts += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/p")]
    return "\n".join("".join(part) if isinstance(part, list) else str(part) for part in parts)


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


def _runs(text: str, scanned: bool = False) -> Iterator[int]:
    """Hashes of all runs of `WORDS` words. A text of four or five words counts as a whole.

    ``scanned``: where such a short text may stand anywhere.
    """
    words = re.findall(r"\w+", text.casefold())
    short = (4, 5) if scanned else (len(words),) if len(words) in (4, 5) else ()
    for size in (*short, WORDS):
        for i in range(len(words) - size + 1):
            yield hash(tuple(words[i : i + size]))


def _marks(text: str) -> list[str]:
    """Tokens that look like an identifier or a date: six characters at least, a digit, no plain decimal."""
    return [
        token
        for token in _tokens(text)
        if len(token) >= 6 and re.search(r"\d", token) and not re.fullmatch(r"-?\d+\.\d+", token)
    ]


def _tokens(text: str) -> list[str]:
    """Words in lower case, with the signs that hold identifiers and dates together, and without."""
    patterns = (r"[\w./:+-]+", r"[^\W_]+(?:[.-][^\W_]+)*", r"[^\W_]+(?:-[^\W_]+)*")
    found = (token for pattern in patterns for token in re.findall(pattern, str(text).casefold()))
    return [token.strip(".:+-/") for token in found]
