"""Reading tables: files (local or by URL), the Hugging Face hub, a function of one's own. pandas does the work."""

import contextlib
import glob
import gzip
import hashlib
import json
import re
import runpy
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from zipfile import BadZipFile

import pandas as pd

from medstudy.data.card import DataCard, File, Files, Hub, Prepare
from medstudy.data.cases import DataError
from medstudy.files import from_root
from medstudy.runs import project_root

#: What readers of files raise where these are broken, or of another kind.
UNREADABLE = (ValueError, TypeError, LookupError, OSError, EOFError, ImportError, SyntaxError, BadZipFile, zlib.error)
#: How workbooks begin: .xlsx, as other zip archives; old ones (.xls), as those with a password.
PACKED, OLD = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"


@dataclass
class Table:
    """One file, hub split or frame: its name as errors and case ids show it, our name of the split, its rows."""

    name: str
    split: str | None
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pd.DataFrame):
            raise DataError(f"{self.name}: the table is a {type(self.frame).__name__}, not a pandas DataFrame")
        frame = self.frame.rename(columns=lambda name: str(name).strip(" \t\r\n\ufeff"))
        # as it was written: 36.6 in four bytes would read 36.599998
        short = dict.fromkeys(frame.columns[frame.dtypes == "float32"], str)
        self.frame = frame.astype(short).astype(dict.fromkeys(short, float))


def read_tables(card: DataCard, data_root: str = "") -> Iterator[Table]:
    """Read every file or split of a card, or raise DataError. With `data_root` no network is used."""
    load = card.local if data_root else card.load
    if load is None:
        hub = "is read from the hub; with data_root it needs load.local"
        remedy = hub if card.load else "has no load: say where the source lies, or give frame="
        raise DataError(f"data card '{card.name}' {remedy}")
    if isinstance(load, Prepare):
        yield Table(card.name, None, _prepared(card, load, data_root))
    elif isinstance(load, Hub):
        yield from _from_hub(load)
    else:
        yield from (_read(file, load, card, data_root) for file in load.files)


def _prepared(card: DataCard, load: Prepare, data_root: str) -> Any:
    """What the card's own function returns; of its errors a private source shows no text that may be a cell's."""
    file, _, function = load.prepare.partition(":")
    path, folder = card.folder / file, _data_folder(card, data_root)
    if not path.is_file():
        raise DataError(f"no file {path}: load.prepare is a Python file beside the card, and a function in it")
    try:
        found = runpy.run_path(str(path)).get(function)
        if callable(found):
            return found(folder)
    except Exception as error:  # noqa: BLE001 (whatever the user's own code raises)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f"{path.name} line {lines[-1]}" if lines else path.name
        told = card.shareable or isinstance(error, (OSError, ImportError, NameError))
        text = str(error) if told else f"(not shown: the card is private); see it by {function}(Path('{folder}'))"
        text += "; set data_root to the folder that holds it" if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{at}: {type(error).__name__} {text}") from (error if told else None)
    raise DataError(f"{path.name} has no function '{function}', which load.prepare names")


def _data_folder(card: DataCard, data_root: str) -> Path:
    """The folder that a function gets: `data_root`, or the card's own; all of it is what a run depends on."""
    folder = from_root(data_root) if data_root else card.folder
    if not folder.is_dir() or folder.resolve() == project_root().resolve():
        raise DataError(f"data_root '{folder}' is not a folder, or all of the project; set it to that of the data")
    return folder


def source_files(card: DataCard, data_root: str) -> list[Path]:
    """Local files that the cases are made of, as far as they can be found."""
    load, found = card.local, []
    for file in load.files if isinstance(load, Files) else ():
        with contextlib.suppress(DataError):  # said when it is read, with what helps
            found.append(find_file(file.path, data_root, card.folder))
    if isinstance(load, Prepare):
        found.append(card.folder / load.prepare.partition(":")[0])
        with contextlib.suppress(DataError):
            folder = _data_folder(card, data_root)
            inside = [path for path in sorted(folder.rglob("*")) if path.suffix not in (".yaml", ".yml")]
            hidden = re.compile(r"(^|/)(\.|__)[^/]*/")  # caches, and what git keeps
            found += [path for path in inside if not hidden.search(path.relative_to(folder).as_posix())]
    return [path for path in found if path.is_file()]


def _from_hub(hub: Hub) -> Iterator[Table]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    for ours, theirs in hub.splits.items():
        try:
            data = load_dataset(hub.path, hub.config or None, split=theirs, revision=hub.revision or None)
        except (DatasetsError, OSError, ValueError) as error:
            remedy = "check id, config, split and network, or set data_root to a folder with local copies"
            raise DataError(f"hub data set '{hub.path}', split '{theirs}': {error}; {remedy}") from error
        yield Table(theirs, ours, data.to_pandas())


def _read(file: File, load: Files, card: DataCard, data_root: str) -> Table:
    if data_root or not file.url:
        content = find_file(file.path, data_root, card.folder).read_bytes()
    else:
        try:
            with urlopen(file.url, timeout=60) as response:
                content = response.read()
        except (OSError, HTTPException) as error:
            raise DataError(f"{file.url}: {error}; or set data_root to a folder that holds {file.path}") from error
    if file.sha256 and hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(f"{file.path}: the content is not what the card was written for; correct or remove sha256")
    try:
        frame = table_of(content, file, load)
    except UNREADABLE as error:
        raise DataError(f"{file.path} cannot be read as {load.format}: {error}; check format, sep, encoding") from error
    # of an absolute path, which may name a patient, the last part
    return Table(Path(file.path).name if Path(file.path).is_absolute() else file.path, file.split, frame)


def find_file(path: str, data_root: str, beside: Path) -> Path:
    """The file at `path` under `data_root`, or the only one of that name in a sub-folder, or beside the card."""
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
    if hits or (beside / path).is_file():
        return hits[0] if hits else beside / path
    where = f"{(root / path).resolve()}{' or a folder below' if data_root else ''}, nor beside the card"
    fetch = "leave data_root empty and let the card fetch it (url, or kind hub)"
    raise DataError(f"no file {where}; set data_root to the folder that holds it, or {fetch}")


def unpacked(content: bytes) -> bytes:
    """What a gzip file holds; anything else as it is."""
    if content.startswith((PACKED, OLD)):
        raise ValueError("it is a workbook (say `format: xlsx`) or a zip archive (unpack it)")
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def decoded(content: bytes, encoding: str = "utf-8-sig") -> str:
    """Bytes as text. A byte order mark wins over `encoding`; ValueError for what another one must have written."""
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if content.startswith(mark)), encoding)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        other = "" if encoding == "cp1252" else "; text of Windows in Europe and America: say `encoding: cp1252`"
        raise ValueError(f"byte {error.start} is no {encoding}{other}") from None
    if "\0" in text:
        raise ValueError("it holds bytes of 0: it may be UTF-16 without a mark: say `encoding: utf-16-le`")
    if re.search("[\x80-\x9f]", text):
        raise ValueError("it holds signs that only Windows-1252 prints: say `encoding: cp1252`")
    if not text.isascii() and encoding.replace("_", "-").lower() not in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        with contextlib.suppress(UnicodeDecodeError):
            content.decode("utf-8")
            raise ValueError(f"it is UTF-8, not {encoding}: leave out `encoding`")
    return text.removeprefix("\ufeff")


def table_of(content: bytes, file: File, load: Files) -> pd.DataFrame:
    """One file as a table. Cells of csv stay text: 007 is no number, and NA may be sodium."""
    if load.format == "xlsx":
        return _headed(_sheet(content, file), load.names)
    content = unpacked(content)
    if load.format == "parquet":
        return pd.read_parquet(BytesIO(content))
    text = decoded(content, load.encoding)
    if load.format == "csv":
        if re.search(rf'(?<!\\)\\"(?!{re.escape(load.sep)}|\s*(?:\n|$))', text):
            raise ValueError('it has backslashes before quotes (\\"): read it by load.prepare, with escapechar')
        # the header is one of the cells, so that no name is changed
        how = {"sep": load.sep, "header": None, "skiprows": file.skip_rows, "dtype": str}
        return _headed(pd.read_csv(StringIO(text), keep_default_na=False, na_values=[""], **how), load.names)
    # not pandas.read_json: it turns texts into dates and refuses long whole numbers
    parts = [text] if load.format == "json" else [line for line in text.split("\n") if line.strip()]
    rows = [json.loads(part) for part in parts]
    rows = rows[0] if load.format == "json" else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it must be a list of objects (json) or one object a line (jsonl); else load.prepare")
    return pd.DataFrame(rows, dtype=object)


def _sheet(content: bytes, file: File) -> pd.DataFrame:
    """The cells of the named sheet, or of the only one that holds any; numbers and dates as such."""
    sheets = sheet_cells(content)
    full = [name for name, frame in sheets.items() if frame.notna().any(axis=None)]
    wanted = file.sheet or (full[0] if len(full) == 1 else "")
    if wanted not in sheets:
        what = f"there is no sheet '{wanted}'" if file.sheet else "say which `sheet`"
        raise ValueError(f"{what}; those with cells: {', '.join(full) or 'none'}")
    return sheets[wanted].iloc[file.skip_rows :].dropna(how="all")


def sheet_cells(content: bytes) -> dict[str, pd.DataFrame]:
    """Sheet -> its cells, of a workbook. NA may be sodium; #N/A and its like are faults of a formula, and no value."""
    how = {"na_values": ["", "#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!", "#NULL!"], "dtype": object}
    try:
        sheets = pd.read_excel(BytesIO(content), sheet_name=None, header=None, keep_default_na=False, **how)
    except UNREADABLE as error:
        what = f"an old, password-protected or broken workbook, or none ({type(error).__name__})"
        raise ValueError(f"it is {what}: save it as .xlsx without a password, also .ods and .xlsb") from None
    written = {"_x000[Dd]_": "\r", "_x000[Aa]_": "\n"}  # line ends of other programs
    return {name: cells.replace(written, regex=True) for name, cells in sheets.items()}


def _headed(cells: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Cells under `names`, or under their first row."""
    if names and len(names) != cells.shape[1]:
        raise ValueError(f"load.names has {len(names)} names for {cells.shape[1]} columns")
    header = names or ["" if pd.isna(name) else str(name) for name in cells.iloc[0]]
    return cells.iloc[0 if names else 1 :].reset_index(drop=True).set_axis(header, axis=1)
