"""From a row of a table to a case, as the card's `columns` say."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any, Self

import pandas as pd

from medstudy.data.card import SPLITS, DataCard, FeatureColumn, Files, Gold, code_key
from medstudy.data.cases import Case

#: A number with a sign before it, as laboratories report what is beyond their range.
_BOUND = re.compile(r"[<>≤≥~]=?\s*")


class RowDropped(Exception):
    """This row is left out; the message is the reason that is counted, and holds no case text."""


@dataclass(frozen=True)
class Row:
    """The cells that a card speaks of, as text and as they came.

    `faults` collects the cells that the card does not foresee: column, and what is wrong with the remedy -> value.
    """

    card: DataCard
    cells: Mapping[str, Any]
    raw: Mapping[str, Any]
    faults: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, card: DataCard, values: Mapping[str, Any]) -> Self:
        """Cells as text, None where there is no value."""
        cells = {name: plain(values[name]) for name in card.columns.read}
        for name, value in cells.items():
            if isinstance(value, str) and code_key(value) in map(code_key, card.columns.no_value(name)):
                cells[name] = None
        return cls(card, cells, values)

    def case(self, case_id: str, split: str | None) -> Case:
        """The case, or RowDropped; `case_id` and `split` are used where the card names no column for them.

        It is of use only where `faults` stay empty.
        """
        columns, text = self.card.columns, self._text()
        group_id = code_key(self._needed(columns.group_id, "group")) if columns.group_id else f"text-{text_key(text)}"
        gold = {outcome: self._answer("gold", outcome, spec) for outcome, spec in columns.gold.items()}
        case_id = code_key(self._needed(columns.case_id, "case id")) if columns.case_id else case_id
        if columns.split:
            self._needed(columns.split.column, "split")
            allowed = columns.split.map or dict(zip(SPLITS, SPLITS, strict=True))
            split = self._mapped(columns.split.column, allowed, "columns.split.map")
        details, shown_to_sft = self._details(gold), self._other("demonstration", gold)
        return Case(case_id, group_id, text, gold, details, split, self.card.open_outcomes, shown_to_sft)

    def _fault(self, column: str, what: str) -> str:
        """Note a fault; what it returns only fills the place."""
        self.faults[column, what] = str(self.cells[column])
        return ""

    def _needed(self, column: str, what: str) -> str:
        if self.cells[column] is None:
            raise RowDropped(f"no {what} in column '{column}'")
        return self._words(column)

    def _words(self, column: str) -> str:
        """A cell as it is shown: a list of words with commas between them."""
        value = self.cells[column]
        if isinstance(value, list) and not any(isinstance(part, (list, dict)) for part in value):
            return ", ".join(str(plain(part)) for part in value)
        if not isinstance(value, str):
            return self._fault(column, "is a table within a cell; make words of it in load.prepare")
        return value

    def _text(self) -> str:
        columns = self.card.columns
        parts = {name: self._needed(name, "text") for name in columns.placeholders}
        lines = [self._line(field) for field in columns.fields if field.missing or self.cells[field.column] is not None]
        parts["fields"] = "\n".join(lines)
        # one pass, so that braces inside a cell stay what they are
        text = re.sub(r"\{([^{}]+)\}", lambda match: parts[match.group(1)], columns.text).strip()
        if not text:
            raise RowDropped("no text: every field is empty")
        return text

    def _line(self, field: FeatureColumn) -> str:
        value, wording = self.cells[field.column], field.wording or field.column
        if value is None:
            return f"{wording}: {field.missing}"
        if field.map:
            value = self._mapped(field.column, field.map, "columns.fields map")
        elif not field.is_number:
            value = self._words(field.column)
        elif not _BOUND.match(value):  # <0.3 stays as it was written
            number = self._number(field.column)
            value = f"{number:.12g}" if field.decimals is None else f"{number:.{field.decimals}f}"
        return f"{wording}: {value} {field.unit}".rstrip()

    def _number(self, column: str) -> float:
        """The cell as a number; of ``<0.3`` the 0.3. What came as a number needs no decimal sign."""
        load = self.card.local
        decimal = load.decimal if isinstance(load, Files) and isinstance(self.raw[column], str) else "."
        number = as_number(_BOUND.sub("", str(self.cells[column]), count=1), decimal)
        if number is None:
            remedy = f"see load.decimal, or columns.missing.{column} if it means 'no value'"
            self._fault(column, f"is not a number with decimal '{decimal}'; {remedy}")
        return math.nan if number is None else number

    def _mapped(self, column: str, mapping: Mapping[str, str], remedy: str) -> str:
        codes = {code_key(key): answer for key, answer in mapping.items()}
        key = code_key(str(self.cells[column]))
        if key in codes:
            return codes[key]
        # codes may be what other patients' cells hold; labels stand in every report
        told = self.card.shareable or mapping.keys() <= {*SPLITS}.union(*self.card.labels.values())
        allowed = f"allowed ({', '.join(mapping)})" if told else f"{len(mapping)} values of {remedy}"
        remedy = f"extend {remedy}, or leave it out by columns.missing.{column}"
        return self._fault(column, f"is not among the {allowed}; {remedy}")

    def _answer(self, kind: str, outcome: str, spec: Gold) -> str:
        """The answer that the row's value means: labels map to themselves, an open outcome takes any."""
        value = self._needed(spec.column, f"answer for '{outcome}'")
        mapping = spec.map or {name: name for name in self.card.labels.get(outcome, ())}
        return self._mapped(spec.column, mapping, f"columns.{kind}.{outcome}.map") if mapping else value

    def _other(self, kind: str, gold: Mapping[str, str]) -> dict[str, str] | None:
        """The answer of another kind that the source holds, whole; None where it is missing or equals gold."""
        specs: Mapping[str, Gold] = getattr(self.card.columns, kind)
        try:
            other = dict(gold) | {name: self._answer(kind, name, spec) for name, spec in specs.items()}
        except RowDropped:
            return None
        return other if other != gold else None

    def _details(self, gold: Mapping[str, str]) -> dict[str, Any]:
        columns = self.card.columns
        cells = {key: self.cells[column] for key, column in columns.details.items()}
        details = {key: value for key, value in cells.items() if value is not None}
        options = details.get("options")
        told = list(map(plain, options.values())) if isinstance(options, dict) else []
        if "options" in details and (gold.get("diagnosis") not in told or len(set(told)) < len(told)):
            self._fault(columns.details["options"], "must be {letter: text}, each once, the right answer among them")
        if columns.fields:
            details["missing"] = [f.column for f in columns.fields if self.cells[f.column] is None]
            details["features"] = {f.column: self._feature(f) for f in columns.fields if f.map or f.is_number}
        if worse := self._other("rejected", gold):
            details["rejected"] = worse
        return details

    def _feature(self, field: FeatureColumn) -> float | None:
        """The number behind a field; where a code is no number, codes count from 0 in the order of the map."""
        if self.cells[field.column] is None:
            return None
        keys = [code_key(key) for key in field.map]
        if all(as_number(key) is not None for key in keys):
            return self._number(field.column)
        key = code_key(str(self.cells[field.column]))
        return float(keys.index(key)) if key in keys else None


def loose(text: str) -> str:
    """Lower case with single blanks: one form of spellings that differ only in these."""
    return " ".join(text.casefold().split())


def text_key(text: str) -> str:
    """A short hash, equal for texts that differ only in case and white space."""
    return hashlib.sha256(loose(text).encode()).hexdigest()[:16]


def answers_by_text(cases: Iterable[Case]) -> dict[str, set[str]]:
    """The different gold answers that each text (by `text_key`) has."""
    answers: dict[str, set[str]] = {}
    for case in cases:
        answers.setdefault(text_key(case.text), set()).add(str(sorted(case.gold.items())))
    return answers


def plain(value: Any) -> Any:
    """A cell as text with plain line ends, None if empty; lists and dicts (JSON, parquet) as they are."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (dict, list)):
        return value
    if pd.isna(value):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    return str(value).replace("\r\n", "\n").replace("\r", "\n").strip().strip("\u200b\ufeff").strip() or None


def as_number(text: str, decimal: str = ".") -> float | None:
    """A finite number with this decimal sign and no other, or None."""
    sign = re.escape(decimal)
    if not re.fullmatch(rf"[+-]?(?:\d+(?:{sign}\d*)?|{sign}\d+)(?:[eE][+-]?\d+)?", text):
        return None
    number = float(text.replace(decimal, "."))
    return number if math.isfinite(number) else None
