"""What of a private source may leave ``private/``: the package's own tables and figures, and its own words.

Decided by construction, cell by cell: an output leaves if `show.aggregate` tagged it, a source if the notebooks as they
ship have that cell. Everything else is withheld and named, unless somebody who has looked tagged the cell ``release``.
What leaves is then scanned for words of the cases (`medstudy.report.scan`), a second net.
"""

import builtins
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from medstudy.arms import ARMS, TRAINED
from medstudy.data.card import DataCard
from medstudy.data.cases import DataError
from medstudy.data.load import load_card
from medstudy.files import private_folder, read_json, slug
from medstudy.params import RunParams, assigned
from medstudy.report.scan import PATTERNS, RULES, Guard, plain
from medstudy.runs import without_paths
from medstudy.show import NOT_SHOWN, TAG, TOO_FEW
from medstudy.tasks import TASK_TYPES

#: Tag of a cell whose output and source somebody has looked at and found fit to be seen.
RELEASE = "release"
WITHHELD = "withheld: not one of the package's tables or figures"
SOURCE_WITHHELD = "withheld: not a cell of the notebooks as they ship"
UNKNOWN = "withheld: the cases were not known yet"
RELEASED = "released by hand (cell tag `release`)"
EARLIER = "withheld: so says an earlier copy"
#: Key in the metadata of an output or a cell that was withheld: why. A cell could put any text there, so that a copy
#: that is released again may say these words only.
_WHY = f"{TAG}_withheld"
_ERRORS = {name for name in dir(builtins) if name.endswith("Error")} | {"DataError", "ParamsError", "RunError"}
_ERRORS |= {"UnlikeRuns"}
_REASONS = {WITHHELD, SOURCE_WITHHELD, UNKNOWN, RELEASED, EARLIER, "Error: withheld"}
_REASONS |= {f"withheld: {rule}" for rule in (*RULES, *PATTERNS)} | {f"{name}: withheld" for name in _ERRORS}
_PARAMETERS = {"parameters", "injected-parameters"}
#: What the package itself writes into a run's folder beside ``private/``, and into a study's.
_RUN_FILES = re.compile(
    r"(run|metrics|contrasts|gates|baselines|ratings|status)\.json|notebook\.ipynb|\.notebook\.ipynb\.lock|\.gitignore"
    rf"|training/({'|'.join(TRAINED)})\.csv"
)
_STUDY_FILES = re.compile(
    r"report/.*|[^/]+/[^/]+/seed\d+/.*|comparison\.ipynb|\.comparison\.ipynb\.lock|comparison\.done|plan\.json"
    r"|verdicts\.csv|tables/(verdicts|metrics|contrasts|variances|costs|rules)\.(csv|tex)"
    r"|figures/(study|forest)\.(png|svg|pdf)"
)
#: Lines that the package itself words, with nothing but numbers in them.
_LINES = re.compile(
    rf"(?:{'|'.join(ARMS)}): step \d+ of \d+, loss [\d.naif]+|(?:{'|'.join(TASK_TYPES)}), seed \d+: ok"
    rf"|{re.escape(TOO_FEW).replace(re.escape('{}'), chr(92) + 'd+')}|(?:{re.escape(NOT_SHOWN)}\s*)*"
)
#: SHA-256 of every cell of the notebooks (`list_shipped`).
SHIPPED = Path(__file__).with_name("shipped_cells.txt")


def release(working: Path, output: Path, runs: list[Path]) -> list[str]:
    """Write what may be seen of ``working``, a notebook executed in ``private/``, to ``output``; says what was not.

    ``runs`` are the folders of the runs whose cases it may hold. If one is not known yet, a crash came before its
    cases were read, and no output leaves. Files in a run's folder that are not the package's are put away, unread.
    """
    notebook = nbformat.read(working, as_version=4)
    said = Filter(guard_of(runs), nothing=not all(map(_is_known, runs))).notebook(notebook)
    nbformat.write(notebook, output)
    away = _put_away(output.parent, _RUN_FILES) if output.parent in runs else 0
    return said + ([f"files put into private/put_away, not looked at: {away}"] if away else [])


class Review:
    """What of a study's results may go into its report; ``kept_back`` names the rest, never what is in it."""

    def __init__(self, study: Path) -> None:
        self.study, self.runs = study, run_folders(study)
        self.guard = guard_of(self.runs)
        private = [run for run in self.runs if is_private(run)]
        for folder in (*private, *([study] if private else [])):
            _put_away(folder, _STUDY_FILES if folder == study else _RUN_FILES)
        away = sum(file.name != ".gitignore" for file in study.glob("**/private/put_away/*"))
        self.kept_back = [f"files put into private/, not looked at: {away}"] if away else []

    def notebook(self, file: Path) -> Any:
        """An executed notebook, without what may not be seen of private runs."""
        notebook = nbformat.read(file, as_version=4)
        private = any(map(is_private, [file.parent] if file.parent in self.runs else self.runs))
        if private or self.guard.cases:  # a public one is only scanned, for cases of the private ones beside it
            name, cleaned = file.relative_to(self.study), Filter(self.guard, public=not private)
            self.kept_back += [f"{name}, {what}" for what in cleaned.notebook(notebook)]
        return notebook


def share(notebook: Path, target: Path, results: Path) -> tuple[list[str], int, int]:
    """Write a copy of an executed notebook as `release` does: for one that ran in JupyterLab or by papermill.

    Returns what was withheld, how many runs it was compared with, and how many private cases they have.

    Raises:
        DataError: the notebook's own run is not in ``results``, so that there is nothing to compare with.
    """
    for path in (notebook, target.parent):
        if not path.exists():
            raise DataError(f"{path} does not exist")
    try:
        content = nbformat.read(notebook, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:  # what it holds may be a patient's
        raise DataError(f"{notebook} is no notebook ({type(error).__name__})") from None
    runs = [folder for study in sorted(results.glob("*")) for folder in run_folders(study)]
    values: dict[str, Any] = {}
    for cell in content.cells:
        values |= _parameters(cell.source) if _PARAMETERS & set(cell.metadata.get("tags", [])) else {}
    # a run's notebook names one run, the comparison all of a study
    own = [run for run in runs if run.parents[2] == results / str(values.get("study"))]
    if "model" in values:
        where = (slug(values["model"]), f"seed{values['seed']}")
        own = [run for run in own if (run.parents[1].name, run.name) == where]
    if not own:
        raise DataError(f"the run of {notebook.name} is not in {results}: nothing to compare it with; give --results")
    # the folder may hold another run by now: a notebook is public by its own card alone
    same = "data" not in values or all(_source(run).get("data") == values["data"] for run in own)
    guard, public = guard_of(runs), same and not any(map(is_private, own))
    said = Filter(guard, public=public).notebook(content)
    nbformat.write(content, target)
    return said, len(runs), len(guard.cases)


def _put_away(folder: Path, own: re.Pattern[str]) -> int:
    """Move files outside ``private/`` that are not the package's ``own`` into ``private/put_away``; says how many."""
    names = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file() or file.is_symlink()]
    away = [name for name in names if "private" not in name.parts and not own.fullmatch(name.as_posix())]
    for name in away:
        (folder / name).replace(private_folder(folder / "private" / "put_away") / "_".join(name.parts))
    return len(away)


@dataclass(frozen=True)
class Filter:
    """Takes out of notebooks what may not be seen.

    Attributes:
        guard: knows the cases, for the scan of what leaves.
        nothing: no output may leave.
        public: the notebook's own cases may be shown; it is only scanned, for those of other runs.
    """

    guard: Guard
    nothing: bool = False
    public: bool = False

    def notebook(self, notebook: Any) -> list[str]:
        """Clean a notebook in place; returns what was withheld or released, by cell."""
        node = type(notebook)
        notebook.metadata = node({k: v for k, v in notebook.metadata.items() if k in ("kernelspec", "language_info")})
        said = []
        for number, cell in enumerate(notebook.cells, start=1):
            why = self._source(cell)
            said += [f"cell {number}, {what}" for what in (*self._outputs(cell), *([f"source {why}"] if why else []))]
            tags = [tag for tag in cell.metadata.get("tags", []) if tag in _PARAMETERS | {RELEASE}]
            cell.metadata = node(tags=tags, **({_WHY: why} if why else {}))
            cell.pop("attachments", None)
            cell.id = f"cell-{number}"
        return said

    def _source(self, cell: Any) -> str:
        """Leave of a cell's source what may be seen; returns why it was withheld."""
        tags, why = set(cell.metadata.get("tags", [])), _said_before(cell.metadata)
        if ships(cell.source):
            return ""
        if not why and not self.public:
            if tags & _PARAMETERS:
                shown = without_paths(_parameters(cell.source))
                cell.source = "\n".join(f"{name} = {value!r}" for name, value in shown.items())
            elif RELEASE not in tags:
                why = SOURCE_WITHHELD
        why = why or self._found(cell.source)
        if why:
            cell.source = f"# {why}" if cell.cell_type == "code" else f"*{why}*"
        return why

    def _outputs(self, cell: Any) -> list[str]:
        by_hand = RELEASE in cell.metadata.get("tags", [])
        seen = [self._seen(output, by_hand) for output in cell.get("outputs", [])]
        kept, whys = [shown for shown, _ in seen if shown], dict.fromkeys(why for _, why in seen if why)
        # together: a sentence may be spread over several outputs
        if why := self._found(" ".join(map(_text, kept)), numbers=by_hand or self.public):
            kept, whys = [], {why: None}
        if "outputs" in cell:
            # a copy of the copy knows by the metadata that something was withheld
            cell.outputs = [*kept, *(_line(f"output {why}", **{_WHY: why}) for why in whys)]
        return [f"output {why}" for why in whys]

    def _found(self, text: str, numbers: bool = True) -> str:
        return next((f"withheld: {rule}" for rule in self.guard.rules_broken(text, numbers)), "")

    def _seen(self, output: Any, by_hand: bool) -> tuple[Any, str]:
        """The output as it may be seen, or None; and why not, or that somebody released it."""
        if output.output_type == "error":  # a class of a cell's own may have any name
            return None, f"{output.ename if output.ename in _ERRORS else 'Error'}: withheld"
        data, metadata = output.get("data", {}), output.get("metadata", {})
        if why := _said_before(metadata):
            return None, why
        words = data.get("text/markdown", data.get("text/plain", output.get("text", ""))).strip()
        if _LINES.fullmatch(words) and (words or set(data) <= {"text/plain", "text/markdown"}):
            return words and _line(words), ""  # the line alone, in no other form
        if self.nothing:
            return None, UNKNOWN
        tagged = [form for form in metadata.get(TAG, []) if form in data]
        if not (tagged or by_hand or self.public):
            return None, WITHHELD
        shown = output.copy()
        if data:
            shown.data = type(output)({form: data[form] for form in tagged or data})
            shown.metadata = type(output)({TAG: tagged} if tagged else {})
        return shown, RELEASED if by_hand and not tagged else ""


def list_shipped(notebooks: Path) -> None:
    """Write `SHIPPED` anew, after a change of the notebooks: a list that is old withholds more, never less."""
    cells = (cell for file in notebooks.glob("*.ipynb") for cell in json.loads(file.read_bytes())["cells"])
    found = {_digest("".join(cell["source"])) for cell in cells}
    SHIPPED.write_text("".join(f"{one}\n" for one in sorted(found)), encoding="utf-8")


def ships(source: str) -> bool:
    """Whether the notebooks as they ship have this cell."""
    return _digest(source) in SHIPPED.read_text(encoding="utf-8").split()


def _digest(source: str) -> str:
    return hashlib.sha256("\n".join(line.rstrip() for line in source.strip().split("\n")).encode()).hexdigest()


def _parameters(source: str) -> dict[str, Any]:
    """The parameters that a cell sets; other names in it may hold anything."""
    known = (*RunParams.model_fields, "margin")
    return {name: value for name, value in assigned(source, mixed=True).items() if name in known and value is not ...}


def guard_of(folders: Iterable[Path]) -> Guard:
    """A guard that knows the cases of every run, finished or not, whose source is not shareable today."""
    guard = Guard()
    for folder in folders:
        if _is_known(folder) and is_private(folder):
            said = _source(folder)
            card = json.loads(said["known"]) | {"load": None}  # the file's name, and what rows held, may be a patient's
            card["columns"] = {key: value for key, value in card["columns"].items() if key not in ("gold", "missing")}
            named = " ".join((json.dumps(card), *folder.parts[-4:]))  # study, model and task are said everywhere
            guard.add(pd.read_parquet(folder / "private" / "cases.parquet"), said["card"], named)
    return guard


def is_private(run: Path) -> bool:
    """Whether a run's cases may not be shown: by what its card says today, and by what it said then."""
    return not (_source(run).get("shareable") and card_of(run).shareable)


def run_folders(study: Path) -> list[Path]:
    """Folders of all runs of a study that got as far as reading their source."""
    return [file.parents[1] for file in sorted(study.glob("*/*/seed*/private/source.json"))]


def card_of(run: Path) -> DataCard:
    """The card of a run's source as it is today; where it is gone, as it was.

    Raises:
        DataError: no cases were read in this folder.
    """
    said = _source(run)
    if not said:
        raise DataError(f"{run} is no run that has read its cases: give results/…/seed0")
    try:
        return load_card(said.get("data") or said["card"])
    except DataError:
        return DataCard.model_validate_json(said["known"])


def _source(run: Path) -> dict[str, Any]:
    return read_json(run / "private" / "source.json")


def _is_known(run: Path) -> bool:
    return bool(_source(run)) and (run / "private" / "cases.parquet").is_file()


def _said_before(metadata: Any) -> str:
    """Why an earlier copy withheld this; empty where none did."""
    if _WHY not in metadata:
        return ""
    return why if (why := str(metadata[_WHY])) in _REASONS else EARLIER


def _line(text: str, **metadata: str) -> Any:
    return nbformat.v4.new_output("display_data", {"text/plain": text}, metadata=metadata)


def _text(output: Any) -> str:
    """What can be read in an output; of a figure what is written in it."""
    parts = [output.get("text", "")]
    for kind, value in output.get("data", {}).items():
        text = "".join(value) if isinstance(value, list) else str(value)
        parts += [plain(text) if kind == "image/svg+xml" else text] if not kind.startswith("image/p") else []
    return "\n".join(parts)
