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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from medstudy.data.card import DataCard, File, Files, code_key, load_card
from medstudy.data.cases import DataError
from medstudy.data.load import load_cases
from medstudy.data.rows import as_number, plain
from medstudy.data.tables import Table, decoded, sheet_cells, table_of, unpacked
from medstudy.tasks import TASK_TYPES, get_task

#: What columns are called, by the part that they play; the first that matches is taken.
NAMES = {
    "case_id": r"^(case|row|record|visit|stay|encounter|note|message|episode)?[_ ]?(id|nr|no|number)$",
    "group_id": r"patient|subject|\bmrn\b|^pat[_ ]?(id|nr|no)$|^pid$",
    "split": r"^(split|fold|partition|subset)$",
    "date": r"date|datum|time|year",
    "urgency": r"urgen|acuity|triage|esi\b|ktas|mts\b|priority|level",
    "provider": r"provider|dispos|destination|special|department|seen[_ ]by|referr|team",
    "summary": r"summary|section_text|target|note|impression|reference",
    "diagnosis": r"^answer$|diagnos|\bdx\b|correct",
    "label": r"label|class|outcome|target|categor|diagnos|status|result|\bdx\b",
    "options": r"option|choice",
}
#: Words of urgency, from the least; 1 is the most urgent of ESI, KTAS, MTS and CTAS.
ORDER = (
    "blue|self", "non|green|low|routine|not urgent|later|week", "less|semi|standard|minor|soon|days",
    "yellow|medium|moderate|same day|today|^urgent", "orange|very|high|emergen|severe|hour",
    "red|immediate|resus|critical|now",
)  # fmt: skip
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("dev", "val", "valid", "validation"), "validation")
MANY = 30


@dataclass
class Guess:
    """What is known so far: how the files are read, their tables, and each choice with its reason."""

    load: dict[str, Any] = field(default_factory=lambda: {"kind": "files", "files": []})
    tables: list[pd.DataFrame] = field(default_factory=list)
    why: list[str] = field(default_factory=list)


def init_card(paths: list[Path], task: str, folder: Path) -> Iterator[str]:
    """Write `folder` with a card and a study of `task`; yields what was guessed, and three cases.

    Raises:
        DataError: no such task or file, a folder that is there, or no column that could be text or answer.
    """
    if task not in TASK_TYPES:
        raise DataError(f"no task '{task}' (allowed: {', '.join(TASK_TYPES)})")
    if folder.exists():
        raise DataError(f"{folder} is there already; give another by --to, or remove it")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"no file {', '.join(missing)}")
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    guess = Guess()
    for path in paths:
        _read(path, root, guess)
    _one_shape(guess)
    frame = pd.concat(guess.tables, ignore_index=True)
    columns, labels = _columns(frame, task, guess)
    name = re.sub(r"\W+", "_", folder.name)
    card: dict[str, Any] = {"name": name, "title": name.replace("_", " "), "task": task, "shareable": False}
    card |= {"question": _question(task, labels)} | ({"labels": labels} if labels else {})
    if len(labels) == 1 and len(next(iter(labels.values()))) == 2:
        (outcome, both), spec = next(iter(labels.items())), columns["gold"][next(iter(labels))]
        counts = Counter(spec["map"].get(plain(value)) for value in frame[spec["column"]])
        card["positive"] = next(
            (a for a in both if a in ("yes", "true", "positive")), min(both, key=counts.__getitem__)
        )
        guess.why.append(f"positive = {card['positive']!r} of {outcome}: yes, or the rarer one")
    DataCard.model_validate(card | {"load": guess.load, "columns": columns})
    folder.mkdir(parents=True)
    _write(folder / "card.yaml", card | {"load": guess.load, "columns": columns})
    loaded = load_cases(load_card(folder / "card.yaml"), root)
    asked = get_task(task, load_card(folder / "card.yaml"))
    longest = max(len(asked.target(case)) for case in loaded.cases)
    _write(folder / "study.yaml", {"models": ["builtin/llama"], "seeds": [0, 1, 2], "tasks": {task: {}}})
    few = dict.fromkeys(("n_train", "n_prefer", "n_valid", "n_test"), 0) if len(loaded.cases) < 1000 else {}
    _write(folder / "shared.yaml", {"data_root": str(root)} | few)
    wanted = {"data": str(folder / "card.yaml"), "max_new_tokens": max(8, longest // 2 + 4)}
    _write(folder / f"{task}.yaml", wanted)
    yield from guess.why
    yield f"max_new_tokens = {wanted['max_new_tokens']}: the longest answer has {longest} signs"
    yield f"{loaded.rows_in} rows, {len(loaded.cases)} cases; private (shareable: false) until you say otherwise"
    for case in loaded.cases[:3]:
        yield f"--- as the model reads it:\n{asked.prompt(case)}\n--- the right answer:\n{asked.target(case)}"
    yield f"written: {folder}; correct card.yaml where a guess is wrong, then: medstudy check {folder}"


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


def _read(path: Path, root: Path, guess: Guess) -> None:
    """Add a file: format, encoding, separator, sheet and header are told by its bytes."""
    content = path.read_bytes()
    entry: dict[str, Any] = {"path": path.resolve().relative_to(root).as_posix()}
    how: dict[str, Any] = {}
    try:
        if content.startswith(b"PK") and b"xl/workbook.xml" in content:
            how["format"] = "xlsx"
            sheets = sheet_cells(content)
            sheet = max(sheets, key=lambda name: int(sheets[name].notna().sum(axis=None)))
            entry |= {"sheet": sheet} if sum(cells.notna().any(axis=None) for cells in sheets.values()) > 1 else {}
            rows = sheets[sheet].astype(object).where(sheets[sheet].notna(), "").to_numpy().tolist()
            told = f"workbook, sheet '{sheet}' (the largest of {len(sheets)})"
        elif content.startswith(b"PAR1"):
            how["format"], rows, told = "parquet", [], "parquet"
        else:
            how, rows, told = _text(unpacked(content))
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
    twice = sorted({name for name in header if header.count(name) > 1 and name})
    if twice:
        raise DataError(f"{path}: two columns are called {', '.join(twice)}; rename one of them in the file")
    stem = next((SPLITS[word] for word in re.split(r"[\W_]+", path.stem.casefold()) if word in SPLITS), None)
    entry |= {"split": stem} if stem else {}
    known = {key: guess.load[key] for key in ("format", "sep", "encoding") if key in guess.load}
    if guess.load["files"] and known != {key: how[key] for key in ("format", "sep", "encoding") if key in how}:
        raise DataError(f"{path} is another kind of file than the first ({known}): read both in load.prepare")
    guess.load |= how
    guess.load["files"].append(entry)
    guess.why.append(f"{path.name}: {told}" + (f", for {stem} by its name" if stem else ""))
    load = Files.model_validate(guess.load | {"files": [{"path": entry["path"]}]})
    guess.tables.append(Table(path.name, None, table_of(content, File.model_validate(entry), load)).frame)


def _text(content: bytes) -> tuple[dict[str, Any], list[list[str]], str]:
    """How a text is read, its first rows where it is a csv, and what to say of it."""
    try:
        text, how, told = (
            decoded(content),
            {},
            "UTF-8" if not content.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-16",
        )
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

    def even(sep: str) -> tuple[float, int]:
        widths = Counter(len(row) for row in tried[sep] if row)
        width, rows = widths.most_common(1)[0]
        return (rows / widths.total() if width > 1 else 0, width)

    sep = max(tried, key=even)
    name = {"\t": "tab"}.get(sep, sep)
    return how | {"format": "csv", "sep": sep}, tried[sep], f"csv, separator '{name}', {told}"


def _one_shape(guess: Guess) -> None:
    """All files get the first one's names, where theirs differ in case, blanks and signs alone; splits all or none."""
    entries = guess.load["files"]
    splits = [entry.get("split") for entry in entries]
    if None in splits or splits.count("train") != 1:
        for entry in entries:
            entry.pop("split", None)

    def bare(name: str) -> str:
        return re.sub(r"[\W_]", "", name.casefold())

    first = {bare(name): name for name in guess.tables[0].columns}
    for number, (entry, frame) in enumerate(zip(entries, guess.tables, strict=True)):
        rename = {name: first[bare(name)] for name in frame.columns if first.get(bare(name), name) != name}
        if rename:
            entry["rename"] = rename
            guess.why.append(f"{entry['path']}: {len(rename)} columns are called as in the first file")
            guess.tables[number] = frame.rename(columns=rename)


def _columns(frame: pd.DataFrame, task: str, guess: Guess) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The card's columns and labels."""
    kind, part = TASK_TYPES[task], _Parts(frame, guess)
    gold, labels = {}, {}
    for outcome in kind.outcomes or ("label",):
        gold[outcome] = {"column": part.answer(outcome, outcome in kind.open_outcomes)}
        if outcome not in kind.open_outcomes:
            gold[outcome]["map"], labels[outcome] = _labels(frame[gold[outcome]["column"]], outcome, guess)
    found: dict[str, Any] = {"gold": gold}
    case, group = part.named("case_id"), part.named("group_id")
    if case and frame[case].map(str).nunique() < len(frame):
        case, group = "", group or case
        guess.why.append(f"'{group}' is there more than once: it is taken for the patient")
    found |= ({"case_id": case} if case else {}) | ({"group_id": group} if group else {})
    dates, split = part.named("date"), part.named("split")
    if dates:
        guess.why.append(
            f"'{dates}' is a date: for a split by time make a column of years and name it in columns.split"
        )
    values = {} if not split or "split" in guess.load["files"][0] else {plain(v) for v in frame[split]}
    if values and all(str(value).casefold() in SPLITS for value in values):
        found["split"] = {"column": split, "map": {value: SPLITS[value.casefold()] for value in values}}
    options = part.named("options") if task == "clinical_reasoning" else ""
    if options and frame[options].map(lambda cell: isinstance(cell, dict)).all():
        found["details"] = {"options": options}
    text = part.text() if task != "numeric_classification" else ""
    fields, missing = part.fields() if task in ("numeric_classification", "clinical_triage") else ([], {})
    if not text and not fields:
        raise DataError(f"no column is left for the text (columns: {', '.join(frame.columns)})")
    found["text"] = "\n".join((["{" + text + "}"] if text else []) + (["{fields}"] if fields else []))
    found |= ({"fields": fields} if fields else {}) | ({"missing": missing} if missing else {})
    used = {text, case, group, options, *(f["column"] for f in fields), *(g["column"] for g in gold.values())}
    rest = [name for name in frame.columns if name and name not in used | {split if "split" in found else ""}]
    if rest:
        found["exclude"] = rest
        guess.why.append(f"not shown to the model (exclude): {', '.join(rest)}")
    return found, labels


class _Parts:
    """Columns of a table that have no part yet."""

    def __init__(self, frame: pd.DataFrame, guess: Guess) -> None:
        self.frame, self.guess, self.free = frame, guess, [name for name in frame.columns if name]
        cells = [str(v) for name in self.free for v in frame[name].dropna().head(200) if isinstance(v, str)]
        commas, points = (
            sum(bool(re.fullmatch(rf"-?[\d.,]*\d{sign}\d+", cell)) for cell in cells) for sign in (",", r"\.")
        )
        self.decimal, self.thousands = ".", ""
        if commas > points:
            self.decimal = guess.load["decimal"] = ","
            guess.why.append(f"decimal sign ',': {commas} numbers have it, {points} a point")
            if any(re.fullmatch(r"-?\d{1,3}(\.\d{3})+,\d+", cell) for cell in cells):
                self.thousands = guess.load["thousands"] = "."

    def _take(self, name: str, part: str, why: str) -> str:
        self.free.remove(name)
        self.guess.why.append(f"{part}: column '{name}' ({why})")
        return name

    def named(self, part: str) -> str:
        """The first free column that is called as such a part mostly is."""
        for name in self.free:
            short = self.frame[name].dropna().astype(str).str.len().mean() < 40 or part == "options"
            if short and re.search(NAMES[part], name, re.IGNORECASE):
                return self._take(name, part, "by its name")
        return ""

    def answer(self, outcome: str, is_open: bool) -> str:
        """The column of gold: by its name, else the last one with few values, or the second longest text."""
        distinct = {name: self.frame[name].dropna().map(str).nunique() for name in self.free}
        fit = [
            n
            for n in self.free
            if distinct[n] > 1 and (is_open or distinct[n] <= MANY and distinct[n] < len(self.frame))
        ]
        for name in fit:
            if re.search(NAMES[outcome], name, re.IGNORECASE):
                return self._take(name, outcome, f"by its name, {distinct[name]} values")
        lengths = sorted(fit, key=self._length, reverse=True)
        if not (lengths[1:] if is_open else fit):
            raise DataError(f"no column looks like the answer '{outcome}' (columns: {', '.join(self.frame.columns)})")
        name = lengths[1] if is_open else fit[-1]
        return self._take(name, outcome, "the second longest text" if is_open else "the last one with few values")

    def _length(self, name: str) -> float:
        cells = self.frame[name].dropna()
        return 0.0 if cells.empty else cells.map(lambda cell: len(cell) if isinstance(cell, str) else 0).mean()

    def text(self) -> str:
        """The column of the longest texts."""
        longest = max(self.free, key=self._length, default="")
        return self._take(longest, "text", "the longest texts") if longest and self._length(longest) > 5 else ""

    def fields(self) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        """Columns of numbers and of few codes, and what in them means no value."""
        fields, missing = [], {}
        for name in list(self.free):
            cells = [value for cell in self.frame[name] if (value := plain(cell)) is not None]
            numbers = [
                c for c in cells if isinstance(c, str) and as_number(c.lstrip("<>≤≥~ "), *self._signs()) is not None
            ]
            other = sorted({str(c) for c in cells} - set(numbers))
            wording = name.replace("_", " ")
            if numbers and len(numbers) > 0.7 * len(cells) and len(other) <= 5:
                parts = [number.partition(self.decimal)[2] for number in numbers]
                fields.append({"column": name, "wording": wording, "decimals": min(3, max(map(len, parts)))})
                missing |= {name: other} if other else {}
                self._take(name, "number", f"no value: {other}" if other else "numbers")
            elif 1 < len(set(map(str, cells))) <= 8 and all(isinstance(c, str) for c in cells):
                fields.append(
                    {"column": name, "wording": wording, "map": {value: value for value in sorted(set(cells))}}
                )
                self._take(name, "code", "few values")
        return fields, missing

    def _signs(self) -> tuple[str, str]:
        return self.decimal, self.thousands


def _labels(cells: pd.Series, outcome: str, guess: Guess) -> tuple[dict[str, str], list[str]]:
    """Map from the values to labels, and the labels; spellings that differ in case alone are one label."""
    counts = Counter(code_key(str(plain(cell))) for cell in cells if plain(cell) is not None)
    labels: dict[str, str] = {}
    for value, _ in counts.most_common():
        labels.setdefault(value.casefold(), value)
    if set(labels) == {"0", "1"}:
        labels = {"0": "no", "1": "yes"}
    elif all(value.isdecimal() for value in labels):
        labels = {value: f"{'level' if outcome == 'urgency' else 'class'} {value}" for value in labels}
    order = list(labels.values())
    if outcome == "urgency":
        places = {label: next((i for i, p in enumerate(ORDER) if re.search(rf"\b(?:{p})\b", label.casefold())), -1)
                  for label in order}  # fmt: skip
        digits = all(value.isdecimal() for value in labels)
        order = sorted(order, key=lambda a: -int(a.split()[-1]) if digits else places[a])
        how = "1 as the most urgent" if digits else "by their words" if min(places.values()) >= 0 else "NOT KNOWN"
        guess.why.append(f"urgency from the least: {', '.join(order)} (order {how})")
    guess.why.append(f"{outcome}: " + ", ".join(f"{value!r} {n} x" for value, n in counts.most_common()))
    return {value: labels[value.casefold()] for value in counts}, order


def _question(task: str, labels: dict[str, list[str]]) -> str:
    return {
        "clinical_triage": "Who should see this patient, and how urgent is it?",
        "clinical_reasoning": "Which diagnosis or answer is right? Answer with one line: Diagnosis: <name>",
        "summarization": "Write the note for this text.",
    }.get(task, "Which of the answers is right for this patient?")
