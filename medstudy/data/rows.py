"""From a row of a table to a case, as the card's `columns` say."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medstudy.data.card import Columns, DataCard, Extract, FeatureColumn, Gold, SplitBy, SplitName
from medstudy.data.cases import Case, DataError


class RowDropped(Exception):
    """This row is left out; the message is the reason that is counted, and holds no case text."""


@dataclass(frozen=True)
class Row:
    """A row with its column names, and `where` it stands, for errors: ``<file> row <number from 1>``."""

    values: Mapping[str, Any]
    where: str


def to_case(row: Row, card: DataCard, case_id: str, split: str | None) -> Case:
    """Build the case of one row; `case_id` is used where the card names no column for it.

    Raises:
        RowDropped: no text, no answer, no group, or an answer that the card drops.
        DataError: a value that the card does not foresee.
    """
    columns = card.columns
    if columns is None:
        raise DataError(f"data card '{card.name}' has no columns")
    parts = {name: _extracted(row, part) for name, part in columns.extract.items()}
    row = Row({**row.values, **parts}, row.where)
    cells = Row({name: _cell(row, name, columns) for name in columns.used}, row.where)
    text = _text(cells, columns)
    gold = {outcome: _answer(cells, outcome, spec, card) for outcome, spec in columns.gold.items()}
    return Case(
        case_id=_needed(cells, columns.case_id, "case id") if columns.case_id else case_id,
        group_id=_needed(cells, columns.group_id, "group") if columns.group_id else f"text-{text_key(text)}",
        text=text,
        gold=gold,
        details=_details(cells, columns, gold) | _rejected(cells, gold, card),
        split=_split(cells, columns.split_by) if columns.split_by else split,
    )


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
    """A code as maps and missing lists compare it: ``1``, ``1.`` and ``1.0`` are one."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", text.strip())


def _cell(row: Row, name: str, columns: Columns) -> Any:
    value = plain(row.values[name])
    empty = {code_key(marker) for marker in columns.missing.get(name, [])}
    return None if isinstance(value, str) and code_key(value) in empty else value


def _needed(row: Row, column: str, what: str) -> str:
    if row.values[column] is None:
        raise RowDropped(f"no {what} in column '{column}'")
    return str(row.values[column])


def _text(row: Row, columns: Columns) -> str:
    parts = {name: _needed(row, name, "text") for name in columns.placeholders}
    lines = [_line(row, field) for field in columns.fields if row.values[field.column] is not None or field.missing]
    parts["fields"] = "\n".join(lines)
    # one pass, so that braces inside a cell stay what they are
    text = re.sub(r"\{([^{}]+)\}", lambda match: parts[match.group(1)], columns.text).strip()
    if not text:
        raise RowDropped("no text: every field is empty")
    return text


def _line(row: Row, field: FeatureColumn) -> str:
    value = row.values[field.column]
    if value is None:
        return f"{field.wording or field.column}: {field.missing}"
    if field.map:
        shown = _mapped(field.map, value, f"{row.where}, column '{field.column}'", "columns.fields map")
    elif field.is_number:
        number = _number(row, field.column)
        shown = str(plain(number)) if field.decimals is None else f"{number:.{field.decimals}f}"
    else:
        shown = str(value)
    return f"{field.wording or field.column}: {shown} {field.unit}".rstrip()


def _number(row: Row, column: str) -> float:
    try:
        number = float(row.values[column])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{row.where}, column '{column}': {_short(row.values[column])} is not a number;"
            f" if it means 'no value', list it in columns.missing.{column} or load.na_values"
        )
    return number


def _mapped(mapping: Mapping[str, str], value: Any, where: str, remedy: str) -> str:
    codes = {code_key(key): answer for key, answer in mapping.items()}
    if code_key(str(value)) not in codes:
        raise DataError(f"{where}: {_short(value)} is not among the allowed ({_listed(mapping)}); extend {remedy}")
    return codes[code_key(str(value))]


def _answer(row: Row, outcome: str, spec: Gold, card: DataCard, kind: str = "gold") -> str:
    value = _needed(row, spec.column, f"answer for '{outcome}'")
    # labels map to themselves; an open outcome takes any answer
    mapping = spec.map or {name: name for name in card.labels.get(outcome, [value])}
    known = code_key(value) in map(code_key, mapping)
    if code_key(value) in map(code_key, spec.drop) or (not known and "*" in spec.drop):
        raise RowDropped(f"answer for '{outcome}' is one that the card drops")
    where, remedy = f"{row.where}, column '{spec.column}'", f"columns.{kind}.{outcome}.map or .drop"
    return _mapped(mapping, value, where, remedy)


def _rejected(row: Row, gold: Mapping[str, str], card: DataCard) -> dict[str, Any]:
    """The worse answer that the source holds, whole; none where it is missing, dropped or equals gold."""
    specs = card.columns.rejected if card.columns else {}
    try:
        worse = {outcome: _answer(row, outcome, spec, card, "rejected") for outcome, spec in specs.items()}
    except RowDropped:
        return {}
    answer = dict(gold) | worse
    return {"rejected": answer} if answer != gold else {}


def _extracted(row: Row, part: Extract) -> str | None:
    """From behind the first `start` to before the next `end`; None where the text has no such part."""
    text = plain(row.values[part.column])
    _, found, rest = text.partition(part.start) if isinstance(text, str) else ("", "", "")
    stops = [place for end in part.end if (place := rest.find(end)) >= 0]
    return rest[: min(stops, default=None)].strip() or None if found else None


def _split(row: Row, by: SplitBy) -> SplitName:
    value = _needed(row, by.column, "split")
    given = {v: name for name in ("validation", "test") for v in map(code_key, getattr(by, name))}
    if by.test_from and code_key(value) not in given:
        first, this = _number_or_none(by.test_from), _number_or_none(value)
        dates = [_DATE.fullmatch(text) for text in (by.test_from, value)]
        iso = [_ISO_DATE.match(text) for text in (by.test_from, value)]
        if (first is None) != (this is None) or (any(dates) and not all(iso)):
            raise DataError(
                f"{row.where}, column '{by.column}': {_short(value)} cannot be compared with "
                f"split_by.test_from = {by.test_from!r}; write both as numbers, or "
                "both as texts in order (dates: YYYY-MM-DD)"
            )
        later = value >= by.test_from if first is None or this is None else this >= first
        return "test" if later else "train"
    return given.get(code_key(value), "train")


#: Something with two signs between numbers, such as 03.11.2019 or 3/11/19; and what sorts as it should.
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}.*")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _number_or_none(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _details(row: Row, columns: Columns, gold: Mapping[str, str]) -> dict[str, Any]:
    cells = {key: row.values[column] for key, column in columns.details.items()}
    details = {key: value for key, value in cells.items() if value is not None}
    if "options" in details:
        _check_options(details["options"], gold, row.where)
    if columns.fields:
        details["missing"] = [f.column for f in columns.fields if row.values[f.column] is None]
        details["features"] = {f.column: _feature(row, f) for f in columns.fields if f.map or f.is_number}
    return details


def _check_options(options: Any, gold: Mapping[str, str], where: str) -> None:
    if not isinstance(options, dict) or gold.get("diagnosis") not in map(plain, options.values()):
        raise DataError(f"{where}: details.options must be {{letter: text}} with the right answer among them")


def _feature(row: Row, field: FeatureColumn) -> float | None:
    """The number behind a field; where a code is no number, codes count from 0 in the order of the map."""
    value = row.values[field.column]
    if value is None:
        return None
    if all(re.fullmatch(r"-?\d+(\.\d*)?", key) for key in field.map):
        return _number(row, field.column)
    return float([code_key(key) for key in field.map].index(code_key(value)))


def _listed(names: Iterable[str]) -> str:
    """Names as they are, in quotes where a comma would hide which is which."""
    names = list(names)
    return "allowed: " + ", ".join(repr(n) if any("," in m for m in names) else n for n in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
