"""What of a private source may leave ``private/``: the package's own tables and figures, and its own words.

Decided by construction, cell by cell: an output leaves if `show.aggregate` tagged it, a source if the notebooks as they
ship have that cell. Everything else is withheld and named, unless somebody who has looked tagged the cell ``release``.
What leaves is then scanned for words of the cases (`medstudy.report.scan`), a second net.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from medstudy.arms import TRAINED
from medstudy.data.card import DataCard
from medstudy.data.cases import DataError
from medstudy.data.load import load_card
from medstudy.files import private_folder, read_json, slug
from medstudy.report.scan import Guard
from medstudy.report.withhold import PARAMETERS, Filter, parameters_in

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
        values |= parameters_in(cell.source) if PARAMETERS & set(cell.metadata.get("tags", [])) else {}
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


def guard_of(folders: Iterable[Path]) -> Guard:
    """A guard that knows the cases of every run, finished or not, whose source is not shareable today."""
    guard = Guard()
    for folder in folders:
        if _is_known(folder) and is_private(folder):
            said = _source(folder)
            card = json.loads(said["known"], object_hook=_without_cells)
            named = " ".join((json.dumps(card), *folder.parts[-4:]))  # study, model and task are said everywhere
            guard.add(pd.read_parquet(folder / "private" / "cases.parquet"), said["card"], named)
    return guard


def _without_cells(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a card without what may be a patient's: the file's name, and what rows held."""
    return {key: value for key, value in part.items() if key not in ("load", "gold", "map", "missing")}


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
