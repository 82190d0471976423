"""A first card for a table that nobody has described: what its bytes, names and values show, and why it is thought."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medstudy.data.card import Files, code_key, load_card
from medstudy.data.cases import DataError
from medstudy.data.load import NO_VALUE, load_cases
from medstudy.data.rows import as_number, loose, plain
from medstudy.data.tables import decoded, sheet_cells, table_of, unpacked
from medstudy.params import resolve
from medstudy.tasks import TASK_TYPES, get_task

#: What columns are called, by the part that they play.
NAMES = {
    "group_id": r"^(mrn|pid)$|(^|[-_. ])(pat(ient(en)?)?|subject|person)[-_. ]*(id|n[ro]|num(mer|ber)|key)?$"
    r"|(^|[-_. ])hospital[-_. ]*(id|n[ro]|num(mer|ber)|key)$",
    "case_id": r"(^|[-_. ])(id|nr|no|number|key)$|nummer$",
    "text": r"complain|text|note|message|nachricht|report|question|dialog|convers|histor|abstract|narrat|vignet|reason",
    "urgency": r"urgen|acuity|triage|esi\b|ktas|mts\b|priorit|level|dringlich",
    "provider": r"provider|dispos|destination|special|department|seen[_ ]by|referr|team|fachgr|abteilung",
    "summary": r"summary|section_text|target|note|impression|reference",
    "diagnosis": r"^answer$|diagnos|\bdx\b|correct",
    "label": r"label|class|outcome|target|categor|diagnos|status|result|\bdx\b",
}
#: Columns that are often written when the answer is known already, and dates.
AFTER = r"diagnos|dispos|expert|error|mistriage|outcome|stay|duration|discharge|final|\bicd|result|correct|date|datum"
#: A column with more different values than this is no label, and one with more than these is no code.
MOST_LABELS, MOST_CODES = 30, 8
#: Several words that fewer rows have as their answer are a remark and no label.
FEWEST_OF_A_LABEL = 3
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
    guess = _Guess(task, frame, load.get("decimal", "."), [told])
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
    tokens = max(8, longest // 2 + 4)
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
    except (ValueError, OSError) as error:
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
    if content.startswith(b"PK"):
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


class _Guess:
    """Columns that have no part yet, the labels of the answers, and the reasons."""

    def __init__(self, task: str, frame: pd.DataFrame, decimal: str, why: list[str]) -> None:
        self.task, self.decimal, self.why = task, decimal, why
        #: by column the cells that hold a value, as text
        self.values = {name: frame[name].map(plain).dropna().map(str) for name in frame}
        self.free, self.rows = list(self.values), len(frame)
        self.used: list[str] = []
        self.labels: dict[str, list[str]] = {}
        #: by column the words in it that mean no value
        self.missing: dict[str, list[str]] = {}

    def columns(self) -> dict[str, Any]:
        """The card's columns; fills ``labels``."""
        kind = TASK_TYPES[self.task]
        found: dict[str, Any] = {}
        for part in ("group_id", "case_id"):
            once = [name for name in self._named(part) if self.values[name].nunique() == self.rows]
            for name in (self._named(part) if part == "group_id" else once)[:1]:
                found[part] = self._take(name, part, "by its name" + ", each there once" * (name in once))
        if "group_id" not in found:
            several = {name: cells.nunique() for name, cells in self.values.items()}
            repeated = [f"'{name}' ({n} values)" for name, n in several.items() if 20 < n < self.rows]
            hint = f"; columns that repeat values: {', '.join(repeated)}" if repeated else ""
            self.why.append(f"group_id: NO PATIENT'S COLUMN FOUND, so one patient may be in two splits{hint}")
        found["gold"] = {o: self._answer(o, o in kind.open_outcomes) for o in kind.outcomes or ("label",)}
        self.free = [name for name in self.free if not re.search(AFTER, name, re.IGNORECASE)]
        text = self._text() if self.task != "numeric_classification" else ""
        fields = self._fields() if self.task in ("numeric_classification", "clinical_triage") else []
        found["text"] = "\n".join((["{" + text + "}"] if text else []) + (["{fields}"] if fields else []))
        if not found["text"]:
            raise DataError(f"no column is left for the text (columns: {', '.join(self.values)})")
        found |= {"fields": fields, "missing": self.missing}
        found["exclude"] = [name for name in self.values if name not in self.used]
        self.why.append(f"not shown to the model (exclude): {', '.join(found['exclude']) or 'no column'}")
        return found

    def _take(self, name: str, part: str, why: str) -> str:
        self.free.remove(name)
        self.used.append(name)
        self.why.append(f"{part}: column '{name}' ({why})")
        return name

    def _named(self, part: str) -> list[str]:
        return [name for name in self.free if re.search(NAMES.get(part, part), name, re.IGNORECASE)]

    def _answer(self, outcome: str, is_open: bool) -> dict[str, Any]:
        """The answer's column: by its name (an expert's before others), else the last that could be it."""
        many = {name: self.values[name].nunique() for name in self.free}
        fit = [name for name, n in many.items() if n > 1 and (is_open or n <= min(MOST_LABELS, self.rows - 1))]
        named = [name for name in self._named(outcome) if name in fit]
        named.sort(key=lambda name: not re.search("expert|gold|final", name, re.IGNORECASE))
        if not fit:
            raise DataError(f"no column looks like the answer '{outcome}' (columns: {', '.join(self.values)})")
        why = "by its name" if named else "A GUESS: the last that could be it; see columns.gold"
        if named[1:] and not is_open:
            why += f"; left out, as they may be others' answers to the same: {', '.join(named[1:])}"
        column = self._take((named or fit[-1:])[0], outcome, why)
        if is_open:
            return {"column": column}
        for other in named[1:]:  # another's judgement of the same gives the answer away
            self.free.remove(other)
        return {"column": column, "map": self._map(column, outcome)}

    def _map(self, column: str, outcome: str) -> dict[str, str]:
        """Value -> label; spellings that differ in case or blanks are one. Numbers of urgency are put in order."""
        values = self.values[column].map(code_key)
        signs = values.str.fullmatch(r"[-+]+").all()  # of + and - the one is no value as little as the other
        no_value = frozenset() if signs else NO_VALUE - {"none", "unknown", "na"}
        if none := sorted(set(values[values.str.casefold().isin(no_value)])):
            self.missing[column] = none
            self.why.append(f"{outcome}: {none} taken for no value; see columns.missing")
        counts = values[~values.isin(none)].value_counts()
        # a label stands in every report; words that one or two rows have may tell of a patient
        remarks = [value for value, n in counts.items() if n < FEWEST_OF_A_LABEL and " " in value]
        if remarks and len(counts) - len(remarks) > 1:
            self.missing[column] = none + remarks
            self.why.append(f"{outcome}: TAKEN FOR REMARKS, their rows are left out: {remarks}; see columns.missing")
            counts = counts.drop(remarks)
        if rare := [value for value, n in counts.items() if n < FEWEST_OF_A_LABEL and not value.isdecimal()]:
            what = "a label stands in every report; if one is a name or a remark, move it to columns.missing"
            self.why.append(f"{outcome}: IN ONE OR TWO ROWS ONLY: {rare}; {what}")
        first = {loose(value): value for value in reversed(counts.index)}  # the most frequent spelling stays
        digits = all(value.isdecimal() for value in first)
        kind = "level" if outcome == "urgency" else "class"
        labels = {v: f"{kind} {v}" if digits else first[v] for v in sorted(first, key=int if digits else str)}
        labels = {"0": "no", "1": "yes"} if set(labels) == {"0", "1"} else labels
        self.labels[outcome] = list(labels.values())[:: -1 if digits and outcome == "urgency" else 1]
        self.why.append(f"{outcome}: " + ", ".join(f"{value!r} {n} x" for value, n in counts.items()))
        if outcome == "urgency":
            how = "1 as the most urgent" if digits else "BY THE ALPHABET: order labels.urgency by hand"
            self.why.append(f"urgency from the least: {', '.join(self.labels[outcome])} ({how})")
        return {value: labels[loose(value)] for value in counts.index}

    def _text(self) -> str:
        """By its name, else the column of the longest texts."""
        length = {name: self.values[name].str.len().mean() for name in self.free if len(self.values[name])}
        long = [name for name in length if length[name] > 5 and not re.search("[{}]", name)]
        named = [name for name in self._named("text") if name in long]
        found = max(named or long, key=length.__getitem__, default="")
        return self._take(found, "text", "by its name" if named else "the longest texts") if found else ""

    def _fields(self) -> list[dict[str, Any]]:
        """Columns of numbers and of few codes; fills ``missing``."""
        fields: list[dict[str, Any]] = []
        for name in list(self.free):
            none = sorted({value for value in self.values[name] if value.casefold() in NO_VALUE})
            given = self.values[name][~self.values[name].isin(none)]
            is_number = given.map(lambda value: as_number(value.lstrip("<>≤≥~= "), self.decimal) is not None)
            field: dict[str, Any] = {"column": name, "wording": name.replace("_", " ")}
            if len(given) and is_number.mean() > 0.7 and given[~is_number].nunique() <= 5:
                none += sorted(set(given[~is_number]))
                field["decimals"] = min(3, max(len(n.partition(self.decimal)[2]) for n in given[is_number]))
            elif 1 < given.nunique() <= MOST_CODES:
                field["map"] = {value: value for value in sorted(set(given.map(code_key)))}
            else:
                continue
            fields.append(field)
            self.missing |= {name: none} if none else {}
            self._take(name, "number" if "decimals" in field else "code", f"no value: {none}" if none else "its values")
        return fields
