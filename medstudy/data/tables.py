"""Reading tables: files (local or by URL), the Hugging Face hub, scikit-learn. pandas does the work."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any
from urllib.request import urlopen

import pandas as pd

from medstudy.data.card import BreastCancer, DataCard, File, Format, Hub, Join
from medstudy.data.cases import DataError
from medstudy.data.rows import code_key, plain
from medstudy.runs import from_root, project_root

_READ_ERRORS = (ValueError, OSError, EOFError, LookupError, zipfile.BadZipFile)
#: What the first bytes of a file say that is no text in UTF-8.
_MARKS = {b"PK": "a zip archive (or xlsx): unpack it", b"\x1f\x8b": "packed by gzip: name it .gz"}
_MARKS |= dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16: say `encoding: utf-16`")


@dataclass(frozen=True)
class Table:
    """One file or hub split: its name as errors and case ids show it, our name of the split, its rows.

    ``unmatched`` counts the rows that a joined table has nothing for.
    """

    name: str
    split: str | None
    frame: pd.DataFrame
    unmatched: tuple[tuple[str, int], ...] = ()


def read_tables(card: DataCard, data_root: str = "") -> Iterator[Table]:
    """Read every file or split of a card. With `data_root` no network is used.

    Raises:
        DataError: something is missing, cannot be reached, or is not what the card says.
    """
    load = card.load
    if isinstance(load, Hub) and data_root:
        if load.local is None:
            raise DataError(f"data card '{card.name}' is read from the hub; with data_root it needs load.local")
        load = load.local
    if isinstance(load, BreastCancer):
        from sklearn.datasets import load_breast_cancer

        yield Table("breast_cancer", None, load_breast_cancer(as_frame=True).frame)
    elif isinstance(load, Hub):
        yield from _from_hub(load)
    else:
        others = [(join, _read(join.file, join, card, data_root)) for join in load.join]
        for file in load.files:
            table = _read(file, load, card, data_root)
            for join, other in others:
                table = _joined(table, join, other)
            yield table


def _from_hub(hub: Hub) -> Iterator[Table]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    for ours, theirs in hub.splits.items():
        try:
            data = load_dataset(hub.path, hub.config or None, split=theirs, revision=hub.revision or None)
        except (DatasetsError, OSError, ValueError) as error:
            raise DataError(
                f"hub data set '{hub.path}', split '{theirs}': {error}; check id, config, split and network,"
                " or set data_root to a folder with local copies"
            ) from error
        yield Table(theirs, ours, data.to_pandas())


def _joined(table: Table, join: Join, other: Table) -> Table:
    """Add the other table's columns; those that are in both stay as they are. No row is lost or doubled."""
    for name, frame in ((table.name, table.frame), (other.name, other.frame)):
        if join.on not in frame:
            raise DataError(f"{name}: no column '{join.on}' to join on")
    keys, key = (frame[join.on].map(_key) for frame in (table.frame, other.frame))
    held, key = other.frame[key.notna()], key[key.notna()]  # a row without a key belongs to nobody
    if key.duplicated().any():
        where = f"{other.name} row {int(key.index[key.duplicated()][0]) + 1}, column '{join.on}'"
        raise DataError(f"{where}: this key was there before; a join needs one row a key")
    lone = int((~keys.isin(key)).sum())
    if lone == len(keys):
        zeros = keys.str.lstrip("0").isin(key.str.lstrip("0")).any()
        hint = "; without their leading zeros some are: write them alike in both files" if zeros else ""
        raise DataError(f"no '{join.on}' of {table.name} is in {other.name}: nothing to join{hint}")
    new = held[[c for c in held if c not in table.frame]].set_index(key)
    frame = pd.concat([table.frame, new.reindex(keys).set_index(table.frame.index)], axis=1)
    unmatched = ((f"without a row in {other.name}", lone),) if lone else ()
    return replace(table, frame=frame, unmatched=(*table.unmatched, *unmatched))


def _key(value: Any) -> str | None:
    value = plain(value)
    return None if value is None else code_key(str(value))


def _read(file: File, load: Format, card: DataCard, data_root: str) -> Table:
    content = _content(file, card, data_root)
    if file.sha256 and hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(f"{file.path}: the content is not what the card was written for; correct or remove sha256")
    try:
        frame = _frame(content, file.path, load)
    except _READ_ERRORS as error:
        mark = next((what for mark, what in _MARKS.items() if content.startswith(mark)), "")
        hint = f"it is {mark}" if mark and load.format != "xlsx" else "check format, sep, encoding"
        raise DataError(f"{file.path} cannot be read as {load.format}: {error}; {hint}") from error
    path = PurePath(file.path)
    return Table(path.name if path.is_absolute() else file.path, file.split, frame)


def _content(file: File, card: DataCard, data_root: str) -> bytes:
    if data_root or not file.url:
        return find_file(file.path, data_root, card.folder).read_bytes()
    try:
        with urlopen(file.url, timeout=60) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise DataError(f"{file.url}: {error}; or set data_root to a folder that holds {file.path}") from error


def find_file(path: str, data_root: str, beside: Path) -> Path:
    """The file at `path` under `data_root`, or the only one of that name in a sub-folder, or beside the card.

    Raises:
        DataError: there is none, or there are several.
    """
    root = from_root(data_root or project_root())
    if not root.is_dir():
        raise DataError(f"data_root '{data_root}' is not a folder")
    for folder in (root, beside):
        if (folder / path).is_file():
            return folder / path
        # an empty data_root is the project's own folder, which is not searched
        below = folder.rglob(glob.escape(Path(path).name)) if data_root and folder == root else ()
        hits = sorted(p for p in below if p.is_file() and p.as_posix().endswith(f"/{path}"))
        if len(hits) > 1:
            raise DataError(f"{path} is there {len(hits)} times: {', '.join(map(str, hits))}; set data_root deeper")
        if hits:
            return hits[0]
    below = " or a folder below" if data_root else ""
    raise DataError(
        f"no file {(root / path).resolve()}{below}, nor beside the card; set data_root to the folder that holds it,"
        " or leave data_root empty and let the card fetch it (url, or kind hub)"
    )


def _frame(content: bytes, path: str, load: Format) -> pd.DataFrame:
    """One file as a table. Cells of csv and xlsx stay text: 007 is no number, and NA may be sodium."""
    if path.endswith(".gz"):
        content = gzip.decompress(content)
    cells = {"dtype": str, "keep_default_na": False, "na_values": [""], "header": None if load.names else 0}
    cells |= {"names": load.names} if load.names else {}
    match load.format:
        case "csv":
            frame = pd.read_csv(BytesIO(content), sep=load.sep, encoding=load.encoding, **cells)
        case "xlsx":
            frame = pd.read_excel(BytesIO(content), **cells)
        case "parquet":
            frame = pd.read_parquet(BytesIO(content))
        case _:
            # not pandas.read_json: it turns texts into dates and refuses long whole numbers
            text = content.decode(load.encoding)
            if load.format == "jsonl":
                text = "[" + ",\n".join(line for line in text.split("\n") if line.strip()) + "]"
            rows = json.loads(text)
            if isinstance(rows, dict):  # objects, or lists of them or of values, by key
                listed = ((key, value if isinstance(value, list) else [value]) for key, value in rows.items())
                pairs = ((key, one) for key, values in listed for one in values)
                rows = [{"key": key} | (one if isinstance(one, dict) else {"value": one}) for key, one in pairs]
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError("it must be a list or an object of JSON objects (json), or one object a line (jsonl)")
            frame = pd.DataFrame(rows, dtype=object)
    if load.format == "csv" and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("rows have more cells than the header has names")
    if load.decimal == ",":
        frame = frame.map(_decimal_point)
    if load.na_values:
        frame = frame.map(lambda value: None if plain(value) in load.na_values else value)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _decimal_point(value: Any) -> Any:
    """36,5 is 36.5. Where the comma is decimal, points between three digits each are thousands: 12.300 is no 12.3."""
    number = isinstance(value, str) and re.fullmatch(r"\s*-?(\d+|[1-9]\d{0,2}(\.\d{3})+)(,\d+)?\s*", value)
    return value.replace(".", "").replace(",", ".") if number else value
