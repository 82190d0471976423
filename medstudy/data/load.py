"""From a card to cases, with every row accounted for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from medstudy.data.card import DataCard, Synthetic, load_card
from medstudy.data.cases import Case, DataError
from medstudy.data.rows import Row, RowDropped, answers_by_text, text_key, to_case
from medstudy.data.tables import Table, read_tables

__all__ = ["Dropped", "Loaded", "load_card", "load_cases"]


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a case: where it stands, and why (no case text)."""

    row: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A source as read. ``len(cases) + len(dropped) == rows_in``, always.

    ``unmatched``: rows that a joined table has nothing for, kept or dropped.
    """

    cases: list[Case]
    rows_in: int
    dropped: list[Dropped]
    labels: dict[str, list[str]] = field(default_factory=dict)
    unmatched: dict[str, int] = field(default_factory=dict)


_Kept = list[tuple[str, Case]]


def load_cases(card: DataCard, data_root: str | Path = "") -> Loaded:
    """Read the card's source. With `data_root`, files are looked for there and no network is used.

    Raises:
        DataError: a file, column or value is missing or wrong, there are no cases, or all have one answer.
    """
    unmatched: Counter[str] = Counter()
    if isinstance(card.load, Synthetic):
        kept = [(case.case_id, case) for case in _generate(card.task, card.load)]
        dropped: list[Dropped] = []
    else:
        kept, dropped = _read_rows(card, read_tables(card, str(data_root)), unmatched)
    rows_in = len(kept) + len(dropped)
    _check_ids(card, kept)
    _check_split_by(card, kept)
    if card.columns and card.columns.repeats == "drop":
        kept = _apart(kept, dropped, "same text, different answers", _conflicting(kept))
    kept = _apart(kept, dropped, "its group (patient or text) is in a later split too", _straddling(kept))
    if card.columns and card.columns.repeats == "drop":
        kept = _apart(kept, dropped, "repeats an earlier text", _repeated(kept))
    cases = [case for _, case in kept]
    _check_answers(card, cases, dropped)
    return Loaded(cases, rows_in, dropped, card.labels, dict(unmatched))


def _generate(task: str, load: Synthetic) -> list[Case]:
    from demo import (
        clinical_reasoning,
        clinical_triage,
        numeric_classification,
        summarization,
        text_classification,
    )

    generators: dict[str, Callable[[int, int], list[Case]]] = {
        "text_classification": text_classification.generate,
        "numeric_classification": numeric_classification.generate,
        "clinical_reasoning": clinical_reasoning.generate,
        "summarization": summarization.generate,
        "clinical_triage": clinical_triage.generate,
    }
    return generators[task](load.n, load.seed)


def _read_rows(card: DataCard, tables: Iterable[Table], unmatched: Counter[str]) -> tuple[_Kept, list[Dropped]]:
    kept: _Kept = []
    dropped: list[Dropped] = []
    for table in tables:
        _check_columns(card, table)
        unmatched.update(dict(table.unmatched))
        stem = PurePath(table.name).with_suffix("").as_posix()
        for number, values in enumerate(table.frame.to_dict("records"), start=1):
            row = Row({"source_file": stem} | values, f"{table.name} row {number}")
            try:
                kept.append((row.where, to_case(row, card, f"{stem}-{number}", table.split)))
            except RowDropped as reason:
                dropped.append(Dropped(row.where, str(reason)))
    return kept, dropped


def _check_columns(card: DataCard, table: Table) -> None:
    if table.frame.empty:
        raise DataError(f"{table.name} of data card '{card.name}' has no rows")
    names = [*table.frame.columns, "source_file"]
    for wanted in card.columns.read if card.columns else ():
        if wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            alone = "; only one column was found: is load.sep right?" if len(names) == 2 else ""
            raise DataError(f"{table.name}: no column '{wanted}'{hint}{alone} (columns: {', '.join(names[:40])})")


def _check_split_by(card: DataCard, kept: _Kept) -> None:
    by = card.columns.split_by if card.columns else None
    if by is None:
        return
    splits = Counter(case.split for _, case in kept)
    wanted = ["train", "test", *(["validation"] if by.validation else [])]
    empty = [name for name in wanted if not splits[name]]
    if empty:
        asked = f"test_from = {by.test_from!r}" if by.test_from else f"test = {by.test}"
        raise DataError(
            f"data card '{card.name}': columns.split_by on '{by.column}' ({asked}, "
            f"validation = {by.validation}) leaves no case for {' and '.join(empty)}; "
            "are the values written as in the file?"
        )


def _check_ids(card: DataCard, kept: _Kept) -> None:
    seen: dict[str, str] = {}
    for where, case in kept:
        if case.case_id in seen:
            raise DataError(
                f"data card '{card.name}': case id '{case.case_id}' in {seen[case.case_id]} and {where};"
                " leave out columns.case_id to number the rows, or use group_id for several rows a patient"
            )
        seen[case.case_id] = where


def _apart(kept: _Kept, dropped: list[Dropped], reason: str, out: set[str]) -> _Kept:
    """Move the cases whose id is in `out` to `dropped`."""
    dropped += [Dropped(where, reason) for where, case in kept if case.case_id in out]
    return [(where, case) for where, case in kept if case.case_id not in out]


def _conflicting(kept: _Kept) -> set[str]:
    answers = answers_by_text(case for _, case in kept)
    return {case.case_id for _, case in kept if len(answers[text_key(case.text)]) > 1}


def _straddling(kept: _Kept) -> set[str]:
    """Cases of a group that is in a later given split too: test stays whole, training gives way."""
    order = {None: 0, "train": 0, "validation": 1, "test": 2}
    last: dict[str, int] = {}
    for _, case in kept:
        last[case.group_id] = max(last.get(case.group_id, 0), order[case.split])
    return {case.case_id for _, case in kept if order[case.split] < last[case.group_id]}


def _repeated(kept: _Kept) -> set[str]:
    first: dict[str, str] = {}
    for _, case in kept:
        first.setdefault(text_key(case.text), case.case_id)
    return {case.case_id for _, case in kept if first[text_key(case.text)] != case.case_id}


def _check_answers(card: DataCard, cases: list[Case], dropped: list[Dropped]) -> None:
    if not cases:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in Counter(d.reason for d in dropped).items())
        raise DataError(f"data card '{card.name}': no case is left of {len(dropped)} rows ({reasons})")
    for outcome, labels in card.labels.items():
        answers = {case.gold[outcome] for case in cases}
        if not answers <= set(labels):
            raise DataError(
                f"data card '{card.name}': {sorted(answers - set(labels))} not in labels.{outcome} {labels}"
            )
        if len(answers) < 2:
            raise DataError(
                f"data card '{card.name}': all {len(cases)} cases have one {outcome}, '{answers.pop()}';"
                " there is nothing to tell apart, check columns.gold and the file"
            )
