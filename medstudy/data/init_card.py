"""A first card for a table that nobody has described: what its bytes, names and values show, and why it is thought."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medstudy.data.card import Files, load_card
from medstudy.data.cases import DataError
from medstudy.data.guess import Guess
from medstudy.data.load import load_cases
from medstudy.data.tables import OLD, PACKED, UNREADABLE, decoded, sheet_cells, table_of, unpacked
from medstudy.params import resolve
from medstudy.tasks import TASK_TYPES, get_task

QUESTIONS = {
    "clinical_triage": "Who should see this patient, and how urgent is it?",
    "clinical_reasoning": "Which diagnosis or answer is right? Answer with one line: Diagnosis: <name>",
    "summarization": "Write the note for this text.",
}


def init_card(paths: list[Path], task: str, folder: Path) -> Iterator[str]:
    """Write `folder` with a card and a study of `task`; yields what was guessed, and three cases.

    DataError: no such task or file, a folder that is there, no column that could be text or answer, or a card that
    has to be corrected by hand before it can be used (it is written).
    """
    if task not in TASK_TYPES:
        raise DataError(f"no task '{task}' (allowed: {', '.join(TASK_TYPES)})")
    if folder.exists():
        raise DataError(f"{folder} is there already; give another by --to, or remove it")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DataError(f"no file {', '.join(missing)}")
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    load, frame, told = _read(paths, root)
    guess = Guess(task, frame, load.get("decimal", "."), [told])
    columns = guess.columns()
    name = re.sub(r"\W+", "_", folder.name)
    card = {"name": name, "title": name.replace("_", " "), "task": task, "shareable": False}
    card |= {"question": QUESTIONS.get(task, "Which of the answers is right for this patient?")}
    folder.mkdir(parents=True)
    _write(folder / "card.yaml", card | {"labels": guess.labels, "load": load, "columns": columns})
    yield from guess.why
    yield from _study(task, folder, root)


def _study(task: str, folder: Path, root: Path) -> Iterator[str]:
    """Write a study on the folder's card; yields its sizes and how the first cases read."""
    card = load_card(folder / "card.yaml")
    loaded, asked = load_cases(card, root), get_task(task, card)
    longest = max(len(asked.target(case)) for case in loaded.cases)
    names, usual = ("n_train", "n_prefer", "n_valid", "n_test"), resolve({"task": task})
    # some go lost where a patient's cases would be in two splits
    few = len(loaded.cases) < 1.1 * sum(getattr(usual, name) for name in names)
    sizes = dict.fromkeys(names, 0) if few else {}
    tokens = max(8, min(longest + 4, longest // 2 + 34))  # words that the built-in models do not know cost more
    _write(folder / "study.yaml", {"models": ["builtin/llama"], "seeds": [0, 1, 2], "tasks": {task: {}}})
    _write(folder / "shared.yaml", {"data_root": str(root)} | sizes)
    _write(folder / f"{task}.yaml", {"data": str(folder / "card.yaml"), "max_new_tokens": tokens})
    if sizes:
        yield "n_train … n_test = 0: a quarter for the test, a tenth for validation, the rest halved; see shared.yaml"
    yield f"max_new_tokens = {tokens}: the longest answer has {longest} signs"
    yield f"{loaded.rows_in} rows, {len(loaded.cases)} cases; private (shareable: false) until you say otherwise"
    for case in loaded.cases[:3]:
        yield f"--- as the model reads it:\n{asked.prompt(case)}\n--- the right answer:\n{asked.target(case)}"
    yield f"written: {folder}; correct card.yaml where a guess is wrong, then: medstudy check {folder}"


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


def _read(paths: list[Path], root: Path) -> tuple[dict[str, Any], pd.DataFrame, str]:
    """The card's `load`, all rows, and what to say of it. Further files are read as the first and pooled."""
    contents = [path.read_bytes() for path in paths]
    try:
        how, place, told = _looked_at(contents[0])
        files = [{"path": path.resolve().relative_to(root).as_posix()} | place for path in paths]
        load = {"kind": "files"} | how | {"files": files}
        read = Files.model_validate(load)
        frame = pd.concat([table_of(*pair, read) for pair in zip(contents, read.files, strict=True)])
    except UNREADABLE as error:
        remedy = "make a table of it in ten lines: load.prepare"
        raise DataError(f"{', '.join(map(str, paths))} cannot be read: {error}; or {remedy}") from error
    frame.columns = frame.columns.map(str).str.strip()
    frame = frame.loc[:, frame.columns != ""]
    if twice := list(frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{paths[0]}: two columns are called {', '.join(twice)}; rename one of them in the file")
    commas, points = (sum(_has_decimals(frame[name].map(str), sign) for name in frame) for sign in ",.")
    if commas > points:
        load["decimal"] = ","
        told += f", decimal sign ',' ({commas} columns have it, {points} a point)"
    return load, frame, f"{paths[0].name}: {told}"


def _has_decimals(cells: pd.Series, sign: str) -> bool:
    """Three digits behind the sign in all of a column mean thousands."""
    found = cells[cells.str.fullmatch(rf"-?\d+{re.escape(sign)}\d+")]
    return bool(len(found)) and not found.str.fullmatch(r"-?[1-9]\d{0,2}\D\d{3}").all()


def _looked_at(content: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
    """How a file is read, where in a workbook the table stands, and what to say of it."""
    if content.startswith((PACKED, OLD)):
        sheets = sheet_cells(content)
        sheet = max(sheets, key=lambda name: int(sheets[name].notna().sum(axis=None)))
        filled = sheets[sheet].notna().sum(axis=1)
        above = int((filled >= 0.8 * filled[filled > 0].median()).argmax())
        told = f"workbook, sheet '{sheet}' (the largest of {len(sheets)}), {above} rows above the header"
        return {"format": "xlsx"}, {"sheet": sheet, "skip_rows": above}, told
    if content.startswith(b"PAR1"):
        return {"format": "parquet"}, {}, "parquet"
    content, how, told = unpacked(content), {}, "UTF-8 or UTF-16"
    try:
        text = decoded(content)
    except ValueError:
        text, how, told = decoded(content, "cp1252"), {"encoding": "cp1252"}, "Windows-1252 (it is no UTF-8)"
    if text.lstrip().startswith(("{", "[")):
        kind = "json" if text.lstrip().startswith("[") else "jsonl"
        return how | {"format": kind}, {}, f"{kind}, {told}"
    header, _, rest = text.lstrip().partition("\n")
    place = {"skip_rows": 1} if re.fullmatch(r"sep=.\s*", header) else {}  # as Excel writes it
    header = rest.partition("\n")[0] if place else header
    sep = max(",;\t|", key=header.count)
    if sep not in header:
        raise ValueError("no comma, semicolon, tab or | in its first line, which must name the columns")
    return how | {"format": "csv", "sep": sep}, place, f"csv, separator {sep!r}, {told}"
