"""A first card for files that nobody has described: what their bytes, names and values show, and why it is thought."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medstudy.data.card import File, Files, code_key, load_card
from medstudy.data.cases import DataError
from medstudy.data.load import load_cases
from medstudy.data.rows import as_number, plain
from medstudy.data.tables import Table, decoded, sheet_cells, table_of, unpacked
from medstudy.tasks import TASK_TYPES, get_task

#: What columns are called, by the part that they play.
NAMES = {
    "id": r"(^|[_ ])(id|nr|no|number|key)$|nummer$|^(mrn|pid)$|^(patient|subject|person)(en)?[_ ]?(id|nr|no|key)?$",
    "split": r"^(split|fold|partition|subset)$",
    "date": r"date|datum|eingang|(^|[_ ])time|^year$",
    "text": r"complain|text|note|message|nachricht|report|question|dialog|convers|histor|abstract|narrat|vignet|reason",
    "urgency": r"urgen|acuity|triage|esi\b|ktas|mts\b|priorit|level|dringlich",
    "provider": r"provider|dispos|destination|special|department|seen[_ ]by|referr|team|fachgr|abteilung",
    "summary": r"summary|section_text|target|note|impression|reference",
    "diagnosis": r"^answer$|diagnos|\bdx\b|correct",
    "label": r"label|class|outcome|target|categor|diagnos|status|result|\bdx\b",
}
#: Columns that are often written when the answer is known already.
AFTER = r"diagnos|dispos|expert|error|mistriage|outcome|length.of.stay|duration|discharge|final|\bicd|result|correct"
#: Words of urgency, from the least; 1 is the most urgent of ESI, KTAS, MTS and CTAS.
ORDER = (
    r"blue|self", r"non|green|low|routine|not urgent|later|week", r"less|semi|standard|minor|soon|days",
    r"yellow|medium|moderate|same day|today|urgent", r"orange|very|high|emergen|severe|hour",
    r"red\b|immediate|resus|critical|now",
)  # fmt: skip
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("dev", "val", "valid", "validation"), "validation")
NO_VALUE = {"?", "??", "-", "--", ".", "n/a", "na", "nan", "none", "null", "unknown", "#n/a"}
#: Numbers that mean no value where all others are 0 or more.
MARKS = {"-1", "-9", "-99", "-999", "-9999"}
#: A column with more different values than this is no label.
MANY = 30
QUESTIONS = {
    "clinical_triage": "Who should see this patient, and how urgent is it?",
    "clinical_reasoning": "Which diagnosis or answer is right? Answer with one line: Diagnosis: <name>",
    "summarization": "Write the note for this text.",
}


def init_card(paths: list[Path], task: str, folder: Path) -> Iterator[str]:
    """Write `folder` with a card and a study of `task`; yields what was guessed, and three cases.

    Raises:
        DataError: no such task or file, a folder that is there, no column that could be text or answer, or a card
            that has to be corrected by hand before it can be used (it is written).
    """
    if task not in TASK_TYPES:
        raise DataError(f"no task '{task}' (allowed: {', '.join(TASK_TYPES)})")
    if folder.exists():
        raise DataError(f"{folder} is there already; give another by --to, or remove it")
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DataError(f"no file {', '.join(missing)}")
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    guess = _Guess(task, paths, root)
    columns = guess.columns()
    name = re.sub(r"\W+", "_", folder.name)
    card: dict[str, Any] = {"name": name, "title": name.replace("_", " "), "task": task, "shareable": False}
    card["question"] = QUESTIONS.get(task, "Which of the answers is right for this patient?")
    card |= ({"labels": guess.labels} if guess.labels else {}) | guess.positive(columns)
    folder.mkdir(parents=True)
    _write(folder / "card.yaml", card | {"load": guess.load, "columns": columns})
    yield from guess.why
    loaded = load_cases(load_card(folder / "card.yaml"), root)
    asked = get_task(task, load_card(folder / "card.yaml"))
    longest = max(len(asked.target(case)) for case in loaded.cases)
    _write(folder / "study.yaml", {"models": ["builtin/llama"], "seeds": [0, 1, 2], "tasks": {task: {}}})
    few = dict.fromkeys(("n_train", "n_prefer", "n_valid", "n_test"), 0) if len(loaded.cases) < 1000 else {}
    _write(folder / "shared.yaml", {"data_root": str(root)} | few)
    if few:
        yield "n_train … n_test = 0: a quarter for the test, a tenth for validation, the rest halved; see shared.yaml"
    wanted = {"data": str(folder / "card.yaml"), "max_new_tokens": max(8, longest // 2 + 4)}
    _write(folder / f"{task}.yaml", wanted)
    yield f"max_new_tokens = {wanted['max_new_tokens']}: the longest answer has {longest} signs"
    yield f"{loaded.rows_in} rows, {len(loaded.cases)} cases; private (shareable: false) until you say otherwise"
    for case in loaded.cases[:3]:
        yield f"--- as the model reads it:\n{asked.prompt(case)}\n--- the right answer:\n{asked.target(case)}"
    yield f"written: {folder}; correct card.yaml where a guess is wrong, then: medstudy check {folder}"


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


class _Guess:
    """What is known so far: how files are read, one table of them all, columns without a part, and the reasons."""

    def __init__(self, task: str, paths: list[Path], root: Path) -> None:
        self.task, self.why, self.labels = task, [], {}
        self.load: dict[str, Any] = {"kind": "files", "files": []}
        tables = [self._read(path, root) for path in paths]
        splits = [entry.get("split") for entry in self.load["files"]]
        if None in splits or splits.count("train") != 1:
            for entry in self.load["files"]:
                entry.pop("split", None)
        for number, (entry, table) in enumerate(zip(self.load["files"], tables, strict=True)):
            # names that differ from the first file's in case, blanks and signs alone
            first = {re.sub(r"[\W_]", "", name.casefold()): name for name in tables[0].columns}
            own = {name: first.get(re.sub(r"[\W_]", "", name.casefold()), name) for name in table.columns}
            if rename := {name: new for name, new in own.items() if name != new}:
                entry["rename"] = rename
                self.why.append(f"{entry['path']}: {len(rename)} columns are called as in the first file")
                tables[number] = table.rename(columns=rename)
        self.frame = pd.concat([t.assign(**{"": i}) for i, t in enumerate(tables)], ignore_index=True)
        self.free = [name for name in self.frame.columns if name]

    def _read(self, path: Path, root: Path) -> pd.DataFrame:
        """Add a file: format, encoding, separator, sheet and header are told by its bytes."""
        content = path.read_bytes()
        entry: dict[str, Any] = {"path": path.resolve().relative_to(root).as_posix()}
        try:
            how, rows, told = _looked_at(content, entry)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: {error}; or make a table of it in ten lines: load.prepare") from error
        filled = [sum(str(cell).strip() != "" for cell in row) for row in rows]
        usual = statistics.median([n for n in filled[:200] if n]) if rows else 0
        above = next((i for i, n in enumerate(filled[:20]) if n >= 0.8 * usual), 0)
        header = [str(cell).strip() for cell in rows[above]] if rows else []
        if above:
            entry["skip_rows"] = above
            told += f", {above} rows above the header"
        if header and sum(as_number(cell) is not None for cell in header) > len(header) / 3:
            header = how["names"] = [f"column_{number}" for number in range(1, len(header) + 1)]
            told += ", no header (numbers in the first line)"
        if twice := sorted({name for name in header if header.count(name) > 1 and name}):
            raise DataError(f"{path}: two columns are called {', '.join(twice)}; rename one of them in the file")
        split = next((SPLITS[word] for word in re.split(r"[\W_]+", path.stem.casefold()) if word in SPLITS), None)
        entry |= {"split": split} if split else {}
        known = {key: self.load[key] for key in ("format", "sep", "encoding") if key in self.load}
        if self.load["files"] and known != {key: how[key] for key in ("format", "sep", "encoding") if key in how}:
            raise DataError(f"{path} is another kind of file than the first ({known}): read both in load.prepare")
        self.load |= how
        self.load["files"].append(entry)
        self.why.append(f"{path.name}: {told}" + (f", for {split} by its name" if split else ""))
        load = Files.model_validate(self.load | {"files": [{"path": entry["path"]}]})
        return Table(path.name, None, table_of(content, File.model_validate(entry), load)).frame

    def columns(self) -> dict[str, Any]:
        """The card's columns; fills ``labels``."""
        kind = TASK_TYPES[self.task]
        self._decimal_sign()
        found: dict[str, Any] = {"gold": {}} | self._ids()
        for outcome in kind.outcomes or ("label",):
            found["gold"][outcome] = self._answer(outcome, outcome in kind.open_outcomes)
        if dates := self._named("date"):
            self.why.append(f"'{dates[0]}' is a date: for a split by time, columns.split with a column of years")
        found |= self._split()
        options = [n for n in self.free if self.frame[n].map(lambda cell: isinstance(cell, dict)).all()]
        if options and self.task == "clinical_reasoning":
            found["details"] = {"options": self._take(options[0], "options", "a letter and a text each")}
        text = self._text() if self.task != "numeric_classification" else ""
        for name in [n for n in self.free if re.search(AFTER, n, re.IGNORECASE) or n in dates]:
            self.free.remove(name)
        fields, missing = self._fields() if self.task in ("numeric_classification", "clinical_triage") else ([], {})
        if not text and not fields:
            raise DataError(f"no column is left for the text (columns: {', '.join(self.frame.columns[:-1])})")
        found["text"] = "\n".join((["{" + text + "}"] if text else []) + (["{fields}"] if fields else []))
        found |= ({"fields": fields} if fields else {}) | ({"missing": missing} if missing else {})
        used = {text, *(f["column"] for f in fields), *(g["column"] for g in found["gold"].values())}
        used |= {found.get("case_id"), found.get("group_id"), found.get("split", {}).get("column"), *options[:1]}
        if rest := [name for name in self.frame.columns if name and name not in used]:
            found["exclude"] = rest
            self.why.append(f"not shown to the model (exclude): {', '.join(rest)}")
        return found

    def positive(self, columns: dict[str, Any]) -> dict[str, str]:
        """Of one outcome with two labels: yes, or the rarer one."""
        if [len(labels) for labels in self.labels.values()] != [2]:
            return {}
        [(outcome, both)] = self.labels.items()
        gold = columns["gold"][outcome]
        counts = Counter(gold["map"].get(code_key(str(plain(value)))) for value in self.frame[gold["column"]])
        yes = next((a for a in both if a.casefold() in ("yes", "true", "positive")), min(both, key=counts.__getitem__))
        self.why.append(f"positive = {yes!r} of {outcome}: yes, or the rarer one")
        return {"positive": yes}

    def _take(self, name: str, part: str, why: str) -> str:
        self.free.remove(name)
        self.why.append(f"{part}: column '{name}' ({why})")
        return name

    def _named(self, part: str) -> list[str]:
        return [name for name in self.free if re.search(NAMES[part], name, re.IGNORECASE)]

    def _length(self, name: str) -> float:
        cells = self.frame[name].dropna()
        return 0.0 if cells.empty else cells.map(lambda cell: len(cell) if isinstance(cell, str) else 0).mean()

    def _distinct(self, name: str) -> int:
        return self.frame[name].dropna().map(str).nunique()

    def _decimal_sign(self) -> None:
        cells = [str(v) for name in self.free for v in self.frame[name].dropna().head(200) if isinstance(v, str)]
        commas, points = (sum(bool(re.fullmatch(rf"-?[\d.,]*\d{s}\d+", c)) for c in cells) for s in (",", r"\."))
        if commas > points:
            self.load["decimal"] = ","
            self.why.append(f"decimal sign ',': {commas} numbers have it, {points} a point")
            if any(re.fullmatch(r"-?\d{1,3}(\.\d{3})+,\d+", cell) for cell in cells):
                self.load["thousands"] = "."

    def _ids(self) -> dict[str, str]:
        """Case and patient: an id that is there once is a case's, one that comes again in a file is a patient's."""
        found: dict[str, str] = {}
        for name in [n for n in self._named("id") if self._length(n) < 40]:
            pairs = self.frame[[name, ""]].map(str)
            if self._distinct(name) == len(self.frame):
                part, why = "case_id", "an id, each there once"
            elif pairs.duplicated().any():
                part, why = "group_id", "an id that comes again: the patient's"
            else:  # numbered anew in each file
                self.why.append(f"'{name}' begins anew in each file: not used as an id")
                self.free.remove(name)
                continue
            if re.search("patient|subject|person|mrn|pid", name, re.IGNORECASE):
                part, why = "group_id", "by its name"
            if part not in found:
                found[part] = self._take(name, part, why)
        return found

    def _answer(self, outcome: str, is_open: bool) -> dict[str, Any]:
        """Gold: by its name (an expert's before others), else the last one with few values, or the second longest."""
        many = {name: self._distinct(name) for name in self.free}
        fit = [n for n in self.free if many[n] > 1 and (is_open or many[n] <= min(MANY, len(self.frame) - 1))]
        named = sorted(
            (n for n in self._named(outcome) if n in fit), key=lambda n: not re.search("expert|gold|final", n, re.I)
        )
        if self.task == "clinical_triage" and not named:  # what a column says tells urgency from who should see
            graded = [n for n in fit if all(_place(str(value)) >= 0 for value in self.frame[n].dropna())]
            fit = (graded if outcome == "urgency" else [n for n in fit if n not in graded]) or fit
        longest = sorted(fit, key=self._length, reverse=True)[1:2] if is_open else fit[-1:]
        if not named and not longest:
            raise DataError(
                f"no column looks like the answer '{outcome}' (columns: {', '.join(self.frame.columns[:-1])})"
            )
        why = (
            f"by its name, {many[named[0]]} values"
            if named
            else "second longest text"
            if is_open
            else "A GUESS: few values"
        )
        column = self._take((named or longest)[0], outcome, why)
        for other in named[1:] if not is_open else ():  # another's judgement of the same gives the answer away
            self.free.remove(other)
        return {"column": column} | ({} if is_open else {"map": self._map(column, outcome)})

    def _map(self, column: str, outcome: str) -> dict[str, str]:
        """Value -> label; spellings that differ in case alone are one label. Urgency is put in order."""
        cells = (plain(cell) for cell in self.frame[column])
        counts = Counter(code_key(str(cell)) for cell in cells if cell is not None)
        labels: dict[str, str] = {}
        for value, _ in counts.most_common():
            labels.setdefault(value.casefold(), value)
        digits = all(value.isdecimal() for value in labels)
        if set(labels) == {"0", "1"}:
            labels = {"0": "no", "1": "yes"}
        elif digits:
            kind = "level" if outcome == "urgency" else "class"
            labels = {value: f"{kind} {value}" for value in sorted(labels, key=int)}
        order = list(labels.values())
        if outcome == "urgency":
            known = min(map(_place, order)) >= 0
            order = order[::-1] if digits else sorted(order, key=_place)
            how = "1 as the most urgent" if digits else "by their words" if known else "NOT KNOWN"
            self.why.append(f"urgency from the least: {', '.join(order)} (order {how})")
        self.why.append(f"{outcome}: " + ", ".join(f"{value!r} {n} x" for value, n in counts.most_common()))
        self.labels[outcome] = order
        return {value: labels[value.casefold()] for value in counts}

    def _split(self) -> dict[str, Any]:
        for name in [] if "split" in self.load["files"][0] else self._named("split"):
            values = {str(plain(v)) for v in self.frame[name]}
            if all(value.casefold() in SPLITS for value in values):
                self._take(name, "split", "by its name")
                return {"split": {"column": name, "map": {value: SPLITS[value.casefold()] for value in values}}}
        return {}

    def _text(self) -> str:
        """By its name, else the longest that is not written afterwards."""
        early = [n for n in self.free if self._length(n) > 5 and not re.search(AFTER, n, re.IGNORECASE)]
        named = [name for name in self._named("text") if name in early]
        found = max(named or early, key=self._length, default="")
        return self._take(found, "text", "by its name" if named else "the longest texts") if found else ""

    def _fields(self) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        """Columns of numbers and of few codes, and what in them means no value."""
        fields, missing, decimal = [], {}, self.load.get("decimal", ".")
        for name in list(self.free):
            cells = [str(value) for cell in self.frame[name] if (value := plain(cell)) is not None]
            none = {c for c in cells if c.casefold() in NO_VALUE}
            numbers = [
                c for c in cells if as_number(c.lstrip("<>≤≥~= "), decimal, self.load.get("thousands", "")) is not None
            ]
            if marks := {c for c in numbers if c in MARKS}:
                none |= marks if not any(c.startswith("-") for c in numbers if c not in marks) else set()
            other, field = set(cells) - set(numbers) - none, {"column": name, "wording": name.replace("_", " ")}
            if numbers and len(other) <= 5 and len(numbers) > 0.7 * len([c for c in cells if c not in none]):
                places = [len(number.partition(decimal)[2]) for number in numbers]
                none |= other
                fields.append(field | {"decimals": min(3, max(places))})
                self._take(name, "number", f"no value: {sorted(none)}" if none else "numbers")
            elif 1 < len(kinds := sorted(set(cells) - none)) <= 8:
                fields.append(field | {"map": {value: value for value in kinds}})
                self._take(name, "code", f"few values; no value: {sorted(none)}" if none else "few values")
            else:
                continue
            missing |= {name: sorted(none)} if none else {}
        return fields, missing


def _place(word: str) -> int:
    """Of a word of urgency among `ORDER`; -1 for any other."""
    return next((i for i, words in enumerate(ORDER) if re.search(rf"\b(?:{words})", word.casefold())), -1)


def _looked_at(content: bytes, entry: dict[str, Any]) -> tuple[dict[str, Any], list[list[Any]], str]:
    """How a file is read, its first rows where it has a header line, and what to say of it."""
    if content.startswith(b"PK") and b"xl/workbook.xml" in content:
        sheets = sheet_cells(content)
        sheet = max(sheets, key=lambda name: int(sheets[name].notna().sum(axis=None)))
        if sum(cells.notna().any(axis=None) for cells in sheets.values()) > 1:
            entry["sheet"] = sheet
        rows = sheets[sheet].astype(object).where(sheets[sheet].notna(), "").to_numpy().tolist()
        return {"format": "xlsx"}, rows, f"workbook, sheet '{sheet}' (the largest of {len(sheets)})"
    if content.startswith(b"PAR1"):
        return {"format": "parquet"}, [], "parquet"
    content, how = unpacked(content), {}
    try:
        text, told = decoded(content), "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-8"
    except ValueError:
        text, how, told = decoded(content, "cp1252"), {"encoding": "cp1252"}, "Windows-1252 (it is no UTF-8)"
    if text.lstrip()[:1] in ("[", "{"):
        try:
            json.loads(text)
            return how | {"format": "json"}, [], f"json, {told}"
        except ValueError:
            return how | {"format": "jsonl"}, [], f"json lines, {told}"
    if text.lstrip().startswith("<"):
        raise ValueError("it is XML or HTML")
    lines = text.splitlines(keepends=True)
    tried = {sep: list(itertools.islice(csv.reader(lines, delimiter=sep), 400)) for sep in ",;\t|"}
    widths = {sep: Counter(len(row) for row in rows if row) for sep, rows in tried.items()}
    usual = {sep: of.most_common(1)[0] for sep, of in widths.items()}
    # as many rows as can be have as many cells, and more than one
    sep = max(tried, key=lambda sep: (usual[sep][1] / widths[sep].total() if usual[sep][0] > 1 else 0, usual[sep][0]))
    name = {"\t": "tab"}.get(sep, sep)
    return how | {"format": "csv", "sep": sep}, tried[sep], f"csv, separator '{name}', {told}"
