"""From a card to cases, with every row accounted for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pandas as pd

from medstudy.data.card import DataCard, load_card
from medstudy.data.cases import Case, DataError
from medstudy.data.rows import Row, RowDropped, answers_by_text, text_key
from medstudy.data.tables import Table, as_table, read_tables

__all__ = ["Dropped", "Loaded", "load_card", "load_cases"]
_ORDER = {None: 0, "train": 0, "prefer": 1, "validation": 2, "test": 3}


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a case: where it stands, and why (no case text)."""

    row: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A source as read. ``len(cases) + len(dropped) == rows_in``, always."""

    cases: list[Case]
    rows_in: int
    dropped: list[Dropped]
    labels: dict[str, list[str]] = field(default_factory=dict)


def load_cases(card: DataCard, data_root: str | Path = "", *, frame: pd.DataFrame | None = None) -> Loaded:
    """Read the card's source, or the rows of `frame` in its place: as private as the card says (by default).

    With `data_root`, files are looked for there and no network is used.

    Raises:
        DataError: a file, column or value is missing or wrong, there are no cases, or all have one answer.
    """
    if not isinstance(data_root, (str, Path)):
        raise DataError(f"data_root is a folder, not a {type(data_root).__name__}; a table is given as frame=")
    tables = list(read_tables(card, str(data_root))) if frame is None else [as_table(card, frame)]
    _check_columns(card, tables)
    kept: dict[str, Case] = {}
    dropped: list[Dropped] = []
    for table in tables:
        stem = PurePath(table.name).with_suffix("").as_posix()
        for number, values in enumerate(table.frame.to_dict("records"), start=1):
            row = Row.read(card, {"source_file": stem} | values, f"{table.name} row {number}")
            try:
                kept[row.where] = row.case(f"{stem}-{number}", table.split)
            except RowDropped as reason:
                dropped.append(Dropped(row.where, str(reason)))
    rows_in = len(kept) + len(dropped)
    _check_ids(card, kept)
    for reason, places in _left_out(card, kept):
        dropped += [Dropped(where, reason) for where in kept if where in places]
        for where in places:
            del kept[where]
    _check_answers(card, list(kept.values()), dropped)
    return Loaded(list(kept.values()), rows_in, dropped, card.labels)


def _left_out(card: DataCard, kept: dict[str, Case]) -> Iterator[tuple[str, set[str]]]:
    """Reasons for which a sound case is left out, in their order, and where those stand that are still in `kept`."""
    drop = card.columns.repeats == "drop"
    if drop:
        answers = answers_by_text(kept.values())
        yield "same text, different answers", {w for w, c in kept.items() if len(answers[text_key(c.text)]) > 1}
    last: dict[str, int] = {}
    for case in kept.values():
        last[case.group_id] = max(last.get(case.group_id, 0), _ORDER[case.split])
    # test stays whole, training gives way
    earlier = {where for where, case in kept.items() if _ORDER[case.split] < last[case.group_id]}
    yield "its group (patient or text) is in a later split too", earlier
    if drop:
        texts = pd.Series({where: text_key(case.text) for where, case in kept.items()}, dtype=object)
        yield "repeats an earlier text", set(texts.index[texts.duplicated()])


def _check_columns(card: DataCard, tables: list[Table]) -> None:
    """Every file has the columns that are read; those that are only excluded are somewhere."""
    everywhere = {name for table in tables for name in table.frame.columns}
    for table in tables:
        if table.frame.empty:
            raise DataError(f"{table.name} of data card '{card.name}' has no rows")
        twice = table.frame.columns[table.frame.columns.duplicated()]
        if len(twice.intersection(card.columns.read)):
            raise DataError(f"{table.name}: column '{twice[0]}' is there twice; rename or drop one of them")
        names = [*table.frame.columns, "source_file"]
        absent = [name for name in card.columns.read if name not in names]
        absent += [name for name in card.columns.exclude if name not in everywhere]
        if absent:
            # where no name is known the first line may be no header, but a patient's cells
            shown = card.shareable or not set(card.columns.read).isdisjoint(table.frame.columns)
            near = difflib.get_close_matches(absent[0], names, n=3, cutoff=0.5) if shown else []
            hint = f"; nearest: {', '.join(near)}" if near else ""
            known = ", ".join(names[:40]) if shown else f"{len(names)}, not shown: is there a header line?"
            alone = "; only one column was found: is load.sep right?" if len(names) == 2 else ""
            raise DataError(f"{table.name}: no column '{absent[0]}'{hint}{alone} (columns: {known})")


def _check_ids(card: DataCard, kept: dict[str, Case]) -> None:
    seen: dict[str, str] = {}
    for where, case in kept.items():
        if case.case_id in seen:
            name = f"'{case.case_id}'" if card.shareable else "(not shown: the card is private)"
            raise DataError(
                f"data card '{card.name}': case id {name} in {seen[case.case_id]} and {where};"
                " leave out columns.case_id to number the rows, or use group_id for several rows a patient"
            )
        seen[case.case_id] = where


def _check_answers(card: DataCard, cases: list[Case], dropped: list[Dropped]) -> None:
    if not cases:
        reasons = "; ".join(f"{n} x {reason}" for reason, n in Counter(d.reason for d in dropped).items())
        raise DataError(f"data card '{card.name}': no case is left of {len(dropped)} rows ({reasons})")
    given = {case.split for case in cases}
    if card.columns.split and not {"train", "test"} <= given:
        raise DataError(f"data card '{card.name}': columns.split leaves cases for {sorted(map(str, given))} only")
    for outcome in card.labels:
        answers = {case.gold[outcome] for case in cases}
        if len(answers) < 2:
            raise DataError(
                f"data card '{card.name}': all {len(cases)} cases have one {outcome}, '{answers.pop()}';"
                " there is nothing to tell apart, check columns.gold and the file"
            )
