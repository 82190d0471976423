"""From a row of a table to a case, as the card's `columns` say."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medstudy.data.card import SPLITS, DataCard, FeatureColumn, Gold
from medstudy.data.cases import Case, DataError


class RowDropped(Exception):
    """This row is left out; the message is the reason that is counted, and holds no case text."""


@dataclass(frozen=True)
class Row:
    """The cells that a card speaks of, and `where` they stand, for errors: ``<file> row <number from 1>``."""

    card: DataCard
    cells: Mapping[str, Any]
    where: str

    @classmethod
    def read(cls, card: DataCard, values: Mapping[str, Any], where: str) -> Row:
        """Cells as text, None where there is no value."""
        cells, missing = {name: plain(values[name]) for name in card.columns.used}, card.columns.missing
        for name, value in cells.items():
            none = (*missing.get(name, ()), *missing.get("*", ()))
            if isinstance(value, str) and code_key(value) in map(code_key, none):
                cells[name] = None
        return cls(card, cells, where)

    def case(self, case_id: str, split: str | None) -> Case:
        """Build the case; `case_id` and `split` are used where the card names no column for them.

        Raises:
            RowDropped: no text, no answer or no group.
            DataError: a value that the card does not foresee.
        """
        columns, text = self.card.columns, self._text()
        group_id = code_key(self._needed(columns.group_id, "group")) if columns.group_id else ""
        gold = {outcome: self._answer("gold", outcome, spec) for outcome, spec in columns.gold.items()}
        return Case(
            case_id=code_key(self._needed(columns.case_id, "case id")) if columns.case_id else case_id,
            group_id=group_id or f"text-{text_key(text)}",
            text=text,
            gold=gold,
            details=self._details(gold) | ({"rejected": worse} if (worse := self._other("rejected", gold)) else {}),
            split=self._answer("", "split", columns.split) if columns.split else split,
            open_outcomes=self.card.open_outcomes,
            demonstration=self._other("demonstration", gold),
        )

    def _fault(self, column: str, what: str) -> DataError:
        """An error about one cell; the cell itself is told of a source that may be shown."""
        value = repr(self.cells[column]) if self.card.shareable else "a value (not shown: the card is private)"
        return DataError(f"{self.where}, column '{column}': {value[:40]} {what}")

    def _needed(self, column: str, what: str) -> str:
        if self.cells[column] is None:
            raise RowDropped(f"no {what} in column '{column}'")
        return str(self.cells[column])

    def _text(self) -> str:
        columns = self.card.columns
        parts = {name: self._needed(name, "text") for name in columns.placeholders}
        parts["fields"] = "\n".join(
            self._line(field) for field in columns.fields if self.cells[field.column] is not None or field.missing
        )
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
        elif field.is_number:
            number = self._number(field.column)
            value = plain(number) if field.decimals is None else f"{number:.{field.decimals}f}"
        return f"{wording}: {value} {field.unit}".rstrip()

    def _number(self, column: str) -> float:
        number = _number_or_none(self.cells[column])
        if number is None:
            remedy = f"list it in columns.missing.{column}; decimal commas are read by load.prepare"
            raise self._fault(column, f"is not a number; if it means 'no value', {remedy}")
        return number

    def _mapped(self, column: str, mapping: Mapping[str, str], remedy: str) -> str:
        codes = {code_key(key): answer for key, answer in mapping.items()}
        key = code_key(str(self.cells[column]))
        if key not in codes:
            # in quotes where a comma would hide which is which
            allowed = ", ".join(repr(key) if any("," in k for k in mapping) else key for key in mapping)
            leave_out = f"or leave it out by columns.missing.{column}"
            raise self._fault(column, f"is not among the allowed ({allowed}); extend {remedy}, {leave_out}")
        return codes[key]

    def _answer(self, kind: str, outcome: str, spec: Gold) -> str:
        """The answer of an outcome, or the split, that the row's value means."""
        where = f"{kind}.{outcome}" if kind else outcome
        value = self._needed(spec.column, f"answer for '{outcome}'" if kind else outcome)
        # labels map to themselves, as splits do; an open outcome takes any answer
        allowed = self.card.labels.get(outcome, [value]) if kind else SPLITS
        mapping = spec.map or {name: name for name in allowed}
        return self._mapped(spec.column, mapping, f"columns.{where}.map")

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
        options = details.get("options", {"": gold.get("diagnosis")})
        if not isinstance(options, dict) or gold.get("diagnosis") not in map(plain, options.values()):
            raise DataError(f"{self.where}: details.options must be {{letter: text}} with the right answer among them")
        if columns.fields:
            details["missing"] = [f.column for f in columns.fields if self.cells[f.column] is None]
            details["features"] = {f.column: self._feature(f) for f in columns.fields if f.map or f.is_number}
        return details

    def _feature(self, field: FeatureColumn) -> float | None:
        """The number behind a field; where a code is no number, codes count from 0 in the order of the map."""
        if self.cells[field.column] is None:
            return None
        if all(_number_or_none(key) is not None for key in field.map):
            return self._number(field.column)
        return float([code_key(key) for key in field.map].index(code_key(self.cells[field.column])))


def text_key(text: str) -> str:
    """A short hash, equal for texts that differ only in case and white space."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:16]


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
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).replace("\r\n", "\n").replace("\r", "\n").strip() or None


def code_key(text: str) -> str:
    """A code or an id as they are compared: ``1``, ``1.`` and ``1.0`` are one."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", text.strip())


def _number_or_none(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
