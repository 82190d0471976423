"""From a card to cases, with every row accounted for."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import pandas as pd

from medstudy.data.card import SPLITS, DataCard, load_card
from medstudy.data.cases import SMALLEST_COUNT, Case, DataError, masked
from medstudy.data.rows import Row, RowDropped, answers_by_text, loose, text_key
from medstudy.data.tables import Table, read_tables
from medstudy.params import nearest

__all__ = ["Dropped", "Loaded", "load_card", "load_cases"]
#: What often means no value, and what a text holds whose bytes were read in a wrong way.
NO_VALUE = frozenset(("nan", "none", "null", "n/a", "#n/a", "na", "<na>", "nat", "-", "--", "?", "??", "unknown", "."))
WRONG_SIGNS = "\ufffd|Ã[\x80-\xbf]|â€|Â[\xa0-\xbf]"
HIDDEN = "(not shown: the card is private)"


@dataclass(frozen=True)
class Dropped:
    """A row that did not become a case: where it stands, and why (no case text)."""

    row: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """A source as read. ``len(cases) + len(dropped) == rows_in``, always; `notes` say what looks odd in its cells."""

    cases: list[Case]
    rows_in: int
    dropped: list[Dropped]
    labels: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_cases(card: DataCard, data_root: str | Path = "", *, frame: pd.DataFrame | None = None) -> Loaded:
    """Read the card's source, or the rows of `frame` in its place; with `data_root` no network is used.

    Raises DataError where files, columns or values are wrong (all are named), or there is nothing to tell apart.
    """
    if not isinstance(data_root, (str, Path)):
        raise DataError(f"data_root is a folder, not a {type(data_root).__name__}; a table is given as frame=")
    tables = list(read_tables(card, str(data_root))) if frame is None else [Table(card.name, None, frame)]
    _check_columns(card, tables)
    kept: dict[str, Case] = {}
    dropped: list[Dropped] = []
    faults: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for table in tables:
        stem = PurePath(table.name).with_suffix("").as_posix()
        for number, values in enumerate(table.frame.to_dict("records"), start=1):
            row, where = Row.read(card, {"source_file": stem} | values), f"{table.name} row {number}"
            try:
                kept[where] = row.case(f"{stem}-{number}", table.split)
            except RowDropped as reason:
                dropped.append(Dropped(where, str(reason)))
            group = str(row.cells.get(card.columns.group_id) or where)
            for kind, value in row.faults.items():
                faults.setdefault(kind, []).append((where, group, value))
    if faults:
        raise DataError("\n".join(_told(card, *kind, found) for kind, found in faults.items()))
    rows_in = len(kept) + len(dropped)
    _check_ids(card, kept)
    for reason, places in _left_out(card, kept):
        dropped += [Dropped(where, reason) for where in kept if where in places]
        for where in places:
            del kept[where]
    _check_answers(card, list(kept.values()), dropped)
    return Loaded(list(kept.values()), rows_in, dropped, card.labels, list(_odd_cells(card, tables)))


def _left_out(card: DataCard, kept: dict[str, Case]) -> Iterator[tuple[str, set[str]]]:
    """Reasons for which a sound case is left out, in their order, and where those stand that are still in `kept`."""
    drop = card.columns.repeats == "drop"
    if drop:
        answers = answers_by_text(kept.values())
        yield "same text, different answers", {w for w, c in kept.items() if len(answers[text_key(c.text)]) > 1}
    rows = [(case.group_id, SPLITS.index(case.split or "train"), text_key(case.text)) for case in kept.values()]
    table = pd.DataFrame(rows, columns=["group", "split", "text"], index=list(kept))
    # test stays whole, training gives way
    earlier = table["split"] < table.groupby("group")["split"].transform("max")
    yield "its group (patient or text) is in a later split too", set(table.index[earlier])
    if drop:
        yield "repeats an earlier text", set(table.index[~earlier][table["text"][~earlier].duplicated()])


def _told(card: DataCard, column: str, what: str, found: list[tuple[str, str, str]]) -> str:
    """One kind of fault (place, group, value): where it first is, and its values with their counts.

    Of a private source only values that so many groups have that they are nobody's own.
    """
    rows, groups = Counter(value for *_, value in found), Counter(value for _, value in {f[1:] for f in found})
    shown = [value for value in rows if card.shareable or groups[value] >= SMALLEST_COUNT][:20]
    values = [", ".join(f"{value[:40]!r} ({rows[value]} rows)" for value in shown)] if shown else []
    if rest := len(rows) - len(shown):
        hidden = "" if card.shareable else f" {HIDDEN}"
        values.append(f"{rest} {'other ' if shown else ''}value{'s' * (rest > 1)}{hidden}")
    return f"{found[0][0]}, column '{column}': {' and '.join(values)} {what}"


def _check_columns(card: DataCard, tables: list[Table]) -> None:
    """Every file has the columns that are read; those that are only excluded are somewhere."""
    everywhere = {name for table in tables for name in table.frame.columns}
    wrong = [f"no column '{name}' (exclude) in any file" for name in card.columns.exclude if name not in everywhere]
    for table in tables:
        if table.frame.empty:
            raise DataError(f"{table.name} of data card '{card.name}' has no rows")
        twice = table.frame.columns[table.frame.columns.duplicated()].intersection(card.columns.read)
        wrong += [f"{table.name}: column '{name}' is there twice; rename or drop one" for name in twice]
        names = [*table.frame.columns, "source_file"]
        if absent := [name for name in card.columns.read if name not in names]:
            # where no name is known the first line may be no header, but a patient's cells
            shown = card.shareable or not set(card.columns.read).isdisjoint(names)
            told = "; ".join(f"no column '{name}'{nearest(name, names if shown else [])}" for name in absent)
            alone = "; only one column was found: is load.sep right?" if len(names) == 2 else ""
            known = ", ".join(names[:40]) if shown else f"{len(names)}, not shown: is there a header line?"
            wrong.append(f"{table.name}: {told}{alone} (columns: {known})")
    if wrong:
        raise DataError("\n".join(wrong))


def _check_ids(card: DataCard, kept: dict[str, Case]) -> None:
    """Ids are there once; no two groups differ only in case, blanks or leading zeros; none was cut by a spreadsheet."""
    seen: dict[str, str] = {}
    alike: dict[str, str] = {}
    for where, case in kept.items():
        if (first := seen.setdefault(case.case_id, where)) != where:
            shown = repr(case.case_id) if card.shareable else HIDDEN
            remedy = "leave out columns.case_id to number the rows, or use group_id for several rows a patient"
            raise DataError(f"data card '{card.name}': case id {shown} in {first} and {where}; {remedy}")
        group, at = case.group_id, f"{where}, column '{card.columns.group_id}'"
        if re.fullmatch(r"\d([.,]\d+)?E\+?\d+", group, re.IGNORECASE):
            raise DataError(f"{at}: the id was cut by a spreadsheet (as in 1.2E+12)")
        key = re.sub(r"(?<!\d)0+(?=\d)", "", loose(group))
        if alike.setdefault(key, group) != group:
            both = f"'{alike[key]}' and '{group}'" if card.shareable else HIDDEN
            what = "differ only in leading zeros, case or blanks, and would be two patients"
            raise DataError(f"{at}: two ids {both} {what}; write them alike by load.prepare")


def _odd_cells(card: DataCard, tables: list[Table]) -> Iterator[str]:
    """Notes on columns that the model is shown: counts alone, and words that are nobody's."""
    answers = [spec.column for outcome, spec in card.columns.gold.items() if outcome in card.open_outcomes]
    for name in dict.fromkeys([*card.columns.placeholders, *(f.column for f in card.columns.fields), *answers]):
        cells = pd.concat([t.frame[name] for t in tables if name in t.frame], ignore_index=True).dropna().astype(str)
        none = {value.casefold() for value in card.columns.no_value(name)}
        empty = cells[cells.str.strip().str.casefold().isin(NO_VALUE - none)].value_counts()
        if said := ", ".join(f"'{value}' ({masked(n, card.shareable)})" for value, n in empty.items()):
            yield f"column '{name}': {said} is shown as it is; if it means no value, see columns.missing"
        row = rf"\n(?:[^,;\t\n]+[,;\t](?! )){{{max(2, tables[0].frame.shape[1] - 1)}}}[^,;\t\n]*(?:\n|$)"
        odd = {
            "hold signs of a wrong encoding": cells.str.contains(WRONG_SIGNS),
            "have just the length at which spreadsheets and databases cut": cells.str.len().isin((32767, 65535)),
            "hold a line that looks like a row; is a quote left open?": cells.str.contains(row),
        }
        counts = {what: masked(int(there.sum()), card.shareable) for what, there in odd.items()}
        yield from (f"column '{name}': {n} cells {what}" for what, n in counts.items() if n)


def _check_answers(card: DataCard, cases: list[Case], dropped: list[Dropped]) -> None:
    if not cases:
        counts = Counter(d.reason for d in dropped).items()
        reasons = "; ".join(f"{masked(n, card.shareable)} x {reason}" for reason, n in counts)
        raise DataError(f"data card '{card.name}': no case is left ({reasons})")
    given = {case.split for case in cases}
    if card.columns.split and not {"train", "test"} <= given:
        raise DataError(f"data card '{card.name}': columns.split leaves cases for {sorted(map(str, given))} only")
    for outcome in card.labels:
        answers = {case.gold[outcome] for case in cases}
        if len(answers) < 2:
            what = f"all {masked(len(cases), card.shareable)} cases have one {outcome}, '{answers.pop()}'"
            raise DataError(f"data card '{card.name}': {what}; nothing to tell apart: check columns.gold and the file")
