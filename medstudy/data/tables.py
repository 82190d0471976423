"""Reading tables: files (local or by URL), the Hugging Face hub, scikit-learn. pandas does the work."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any
from urllib.request import urlopen

import pandas as pd

from medstudy.data.card import BreastCancer, DataCard, File, Files, Format, Hub, Join
from medstudy.data.cases import DataError
from medstudy.data.rows import code_key, plain
from medstudy.runs import from_root, project_root

_READ_ERRORS = (ValueError, OSError, EOFError, LookupError, zipfile.BadZipFile)


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
    """Read every file or split of a card that has columns. With `data_root` no network is used.

    Raises:
        DataError: something is missing, cannot be reached, or is not what the card says.
    """
    match card.load:
        case BreastCancer():
            from sklearn.datasets import load_breast_cancer

            yield Table("breast_cancer", None, load_breast_cancer(as_frame=True).frame)
        case Hub(local=None) if data_root:
            raise DataError(f"data card '{card.name}' is read from the hub; with data_root it needs load.local")
        case Hub(local=Files() as files) if data_root:
            yield from _from_files(files, data_root)
        case Hub() as hub:
            yield from _from_hub(hub)
        case Files() as files:
            yield from _from_files(files, data_root)


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


def _from_files(load: Files, data_root: str) -> Iterator[Table]:
    others = [(join, _read(join.file, join, data_root)) for join in load.join]
    for file in load.files:
        table = _read(file, load, data_root)
        for join, other in others:
            table = _joined(table, join, other)
        yield table


def _joined(table: Table, join: Join, other: Table) -> Table:
    """Add the other table's columns; those that are in both stay as they are. No row is lost or doubled."""
    for name, frame in ((table.name, table.frame), (other.name, other.frame)):
        if join.on not in frame:
            raise DataError(f"{name}: no column '{join.on}' to join on (columns: {', '.join(frame.columns)})")
    key = other.frame[join.on].map(_key)
    held = other.frame[key.notna()]  # a row without a key belongs to nobody
    key = key[key.notna()]
    if key.duplicated().any():
        number = int(key.index[key.duplicated()][0]) + 1
        raise DataError(
            f"{other.name} row {number}, column '{join.on}': this key was there before; a join needs one row a key"
        )
    new = held[[c for c in held if c not in table.frame]].set_index(key)
    keys = table.frame[join.on].map(_key)
    if not keys.isin(key).any():
        raise DataError(f"no '{join.on}' of {table.name} is in {other.name}: nothing to join")
    added = new.reindex(keys).set_index(table.frame.index)
    lone = int((~keys.isin(key)).sum())
    unmatched = (*table.unmatched, *([(f"without a row in {other.name}", lone)] if lone else []))
    return Table(table.name, table.split, pd.concat([table.frame, added], axis=1), unmatched)


def _key(value: Any) -> str | None:
    """12 and 12.0 are one key: a column of whole numbers with empty cells is written as decimals."""
    value = plain(value)
    return None if value is None else code_key(str(value))


def _read(file: File, load: Format, data_root: str) -> Table:
    content = _content(file, data_root)
    if file.sha256 and hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(f"{file.path}: the content is not what the card was written for; correct or remove sha256")
    try:
        frame = _frame(content, file.path, load)
    except _READ_ERRORS as error:
        raise DataError(f"{file.path} cannot be read as {load.format}: {error}; check format, sep, encoding") from error
    path = PurePath(file.path)
    return Table(path.name if path.is_absolute() else file.path, file.split, frame)


def _content(file: File, data_root: str) -> bytes:
    if data_root or not file.url:
        return find_file(file.path, data_root).read_bytes()
    try:
        with urlopen(file.url, timeout=60) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise DataError(f"{file.url}: {error}; or set data_root to a folder that holds {file.path}") from error


def find_file(path: str, data_root: str) -> Path:
    """The file at `path` under `data_root`, or the only one of that name in a sub-folder.

    Raises:
        DataError: there is none, or there are several.
    """
    root = from_root(data_root or project_root())
    if not root.is_dir():
        raise DataError(f"data_root '{data_root}' is not a folder")
    if (root / path).is_file():
        return root / path
    # an empty data_root is the project's own folder, which is not searched
    below = root.rglob(glob.escape(Path(path).name)) if data_root else ()
    hits = sorted(p for p in below if p.is_file() and p.as_posix().endswith(f"/{path}"))
    if len(hits) > 1:
        raise DataError(f"{path} is there {len(hits)} times: {', '.join(map(str, hits))}; set data_root deeper")
    if not hits:
        below = " or a folder below" if data_root else ""
        raise DataError(
            f"no file {(root / path).resolve()}{below}; set data_root to the folder that holds it, or leave"
            " data_root empty and let the card fetch it (url, or kind hub)"
        )
    return hits[0]


def _frame(content: bytes, path: str, load: Format) -> pd.DataFrame:
    """One file as a table. Cells of csv and xlsx stay text: 007 is no number, and NA may be sodium."""
    if path.endswith(".gz"):
        content = gzip.decompress(content)
    text = {"dtype": str, "keep_default_na": False, "na_values": [""], "header": None if load.names else 0}
    if load.names:
        text["names"] = load.names
    match load.format:
        case "csv":
            frame = pd.read_csv(BytesIO(content), sep=load.sep, encoding=load.encoding, **text)
        case "xlsx":
            frame = pd.read_excel(BytesIO(content), **text)
        case "jsonl":
            frame = pd.DataFrame(list(_json_lines(content.decode(load.encoding))), dtype=object)
        case "json":
            frame = pd.DataFrame(list(_json_rows(json.loads(content.decode(load.encoding)))), dtype=object)
        case "parquet":
            frame = pd.read_parquet(BytesIO(content))
    if load.format == "csv" and not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("rows have more cells than the header has names")
    if load.decimal == ",":
        # where the comma is decimal, points between three digits each are thousands: 12.300 is no 12.3
        frame = frame.map(_without_thousands)
        frame = frame.replace(r"^(-?\d+),(\d+)$", r"\1.\2", regex=True)
    if load.na_values:
        frame = frame.map(lambda value: None if plain(value) in load.na_values else value)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _without_thousands(value: Any) -> Any:
    grouped = isinstance(value, str) and re.fullmatch(r"\s*-?[1-9]\d{0,2}(\.\d{3})+(,\d+)?\s*", value)
    return value.replace(".", "") if grouped else value


def _json_rows(data: Any) -> Iterator[dict[str, Any]]:
    """Rows of a JSON file: a list of objects, or an object of objects, lists or plain values by key."""
    if isinstance(data, list):
        for number, row in enumerate(data, start=1):
            if not isinstance(row, dict):
                raise ValueError(f"element {number} is not a JSON object")
            yield row
    elif isinstance(data, dict):
        for key, value in data.items():
            for one in value if isinstance(value, list) else [value]:
                yield {"key": key} | (one if isinstance(one, dict) else {"value": one})
    else:
        raise ValueError("a JSON file must hold a list or an object")


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    # not pandas.read_json: it turns texts into dates and refuses long whole numbers
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")
            yield row
