"""What of a private source may leave ``private/``: the package's own tables and figures, and its own words.

Decided by construction, cell by cell: an output leaves if `show.aggregate` tagged it, a source if the committed
notebooks have that cell. Everything else is withheld and named, unless somebody who has looked tagged the cell
``release``. What leaves is then scanned for words of the cases (`medstudy.report.scan`), a second net.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medstudy.arms import ARMS
from medstudy.data.card import DataCard
from medstudy.data.cases import SMALLEST_COUNT, DataError
from medstudy.data.load import load_card
from medstudy.params import RunParams
from medstudy.report.scan import PATTERNS, RULES, Guard, svg_words
from medstudy.runs import private_folder, project_root, slug, without_paths
from medstudy.show import NOT_SHOWN, TAG
from medstudy.tasks import TASK_TYPES
from medstudy.training.preferences import TOO_FEW

#: Tag of a cell whose output and source somebody has looked at and found fit to be seen.
RELEASE = "release"
WITHHELD = "withheld: not one of the package's tables or figures"
SOURCE_WITHHELD = "withheld: not a cell of the committed notebooks"
RELEASED = "released by hand (cell tag `release`)"
#: What a run's folder holds beside ``private/`` and ``training/``.
OWN_FILES = {f"{name}.json" for name in ("run", "metrics", "contrasts", "gates", "baselines", "ratings", "status")}
OWN_FILES |= {"notebook.ipynb", ".notebook.ipynb.lock", "learning_curve.csv", ".gitignore"}
#: And what a study's folder holds beside its runs, ``private/`` and ``report/``.
TABLES = ("metrics", "contrasts", "variances", "costs", "rules")
STUDY_FILES = {"comparison.ipynb", ".comparison.ipynb.lock", "comparison.done", "verdicts.csv", "tables/verdicts.tex"}
STUDY_FILES |= {"plan.json"}
STUDY_FILES |= {f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "tex")}
STUDY_FILES |= {f"figures/{name}.{kind}" for name in ("study", "forest") for kind in ("png", "svg", "pdf")}
UNKNOWN = "withheld: the cases were not known yet"
#: SHA-256 of every cell of the notebooks, for copies of the package that git does not know (`list_shipped`).
SHIPPED = Path(__file__).with_name("shipped_cells.txt")
#: Lines that the package itself words, with nothing but numbers in them.
_LINES = re.compile(
    rf"(?:{'|'.join(ARMS)}): step \d+ of \d+, loss [\d.naif]+|(?:{'|'.join(TASK_TYPES)}), seed \d+: ok"
    rf"|{re.escape(TOO_FEW).replace(re.escape('{}'), chr(92) + 'd+')}|"
)
_KEPT_TAGS = {"parameters", "injected-parameters", RELEASE}
_RULE = "|".join(map(re.escape, (*RULES, *PATTERNS)))
#: What a released copy says in the place of what was withheld; it may be released again.
_SAID = (
    rf"(?:{re.escape(WITHHELD)}|{re.escape(SOURCE_WITHHELD)}|{re.escape(UNKNOWN)}|{re.escape(RELEASED)}"
    rf"|[A-Za-z]{{1,40}}: withheld|withheld: (?:{_RULE})(?:, (?:{_RULE}))*)"
)


def release(working: Path, output: Path, runs: Iterable[Path]) -> list[str]:
    """Write what may be seen of an executed notebook of private cases to ``output``.

    What else lies beside ``output`` and is none of the package's files goes to ``private/put_away``, unread.

    Args:
        working: the executed notebook, in ``private/``.
        output: where the copy goes.
        runs: folders of the runs whose cases it may hold. If one of them is not known yet, a crash came before
            its cases were read, and no output leaves.

    Returns:
        What was withheld or released by hand: cell and rule, never what was found.
    """
    import nbformat

    runs = list(runs)
    notebook = nbformat.read(working, as_version=4)
    said = Filter(guard_of(runs), shipped_cells(), nothing=not all(map(_is_known, runs))).notebook(notebook)
    nbformat.write(notebook, output)
    return said + (put_away(output.parent) if output.parent in runs else [])


class Review:
    """What of a study's results may go into its report; ``kept_back`` names the rest, never what is in it."""

    def __init__(self, study: Path) -> None:
        self.study, self.runs = study, run_folders(study)
        self.guard = guard_of(self.runs)
        self.filter = Filter(self.guard, shipped_cells())
        self.kept_back: list[str] = []
        for run in filter(is_private, self.runs):
            put_away(run)
        if self.guard.cases:
            _put_away_beside(study)
        away = sum(file.name != ".gitignore" for file in study.glob("**/private/put_away/*"))
        self.kept_back += [f"files put into private/, not looked at: {away}"] if away else []
        for file in _text_files(study):
            broken = self.guard.rules_broken(_words_of(file), numbers=False)
            said = f"{file.relative_to(study)} is there as it was: look at it before you share it: {', '.join(broken)}"
            self.kept_back += [said] if broken else []

    def notebook(self, file: Path) -> Any:
        """An executed notebook, without what may not be seen of private runs."""
        import nbformat

        notebook = nbformat.read(file, as_version=4)
        runs = [file.parent] if file.parent in self.runs else self.runs
        if any(map(is_private, runs)):
            name = file.relative_to(self.study)
            self.kept_back += [f"{name}, {what}" for what in self.filter.notebook(notebook)]
        return notebook

    def sentence(self) -> str:
        """What may be said of what was looked for, and what was not."""
        if not self.guard.cases:
            return "All sources of this study may be shown: their data cards say so."
        return (
            "Of private sources this report holds only the package's own tables and figures, counts below "
            f"{SMALLEST_COUNT} hidden. As a second net, texts were scanned for words of {len(self.guard.cases)} "
            "cases. It does not see paraphrases or pictures; what it found, and what was not looked at, is named here."
        )


def put_away(run: Path) -> list[str]:
    """Move what the package did not write out of a private run's folder into ``private/put_away``."""
    logs = {f"training/{stage.name}.csv" for stage in run.glob("private/stages/*")}
    return _put_away(run, [f for f in _outside_private(run) if f.relative_to(run).as_posix() not in OWN_FILES | logs])


def _put_away_beside(study: Path) -> None:
    """The same for what lies in a study's folder and in none of its runs'."""
    names = {file: file.relative_to(study).as_posix() for file in _outside_private(study)}
    ours = re.compile(r"report/.*|[^/]+/[^/]+/seed\d+/.*")
    _put_away(study, [file for file, name in names.items() if not ours.fullmatch(name) and name not in STUDY_FILES])


def _put_away(folder: Path, files: list[Path]) -> list[str]:
    for file in files:
        file.replace(private_folder(folder / "private" / "put_away") / "_".join(file.relative_to(folder).parts))
    return [f"files put into private/put_away, not looked at: {len(files)}"] if files else []


def _outside_private(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() or file.is_symlink())
    return [file for file in files if "private" not in file.relative_to(folder).parts]


class Filter:
    """Takes out of notebooks what may not be seen.

    Attributes:
        guard: what is known of the cases.
        shipped: sources of the committed notebooks' cells, or their hashes.
        nothing: no output may leave.
        public: the notebook's own cases may be shown; it is only scanned, for those of other runs.
    """

    def __init__(self, guard: Guard, shipped: frozenset[str], nothing: bool = False, public: bool = False) -> None:
        self.guard, self.shipped, self.nothing, self.public = guard, shipped, nothing, public

    def notebook(self, notebook: Any) -> list[str]:
        """Clean a notebook in place; returns what was withheld or released, by cell."""
        kept = {name: notebook.metadata[name] for name in ("kernelspec", "language_info") if name in notebook.metadata}
        notebook.metadata = type(notebook.metadata)(kept)
        said = []
        for number, cell in enumerate(notebook.cells, start=1):
            said += [f"cell {number}, {what}" for what in (*self._outputs(cell), *self._source(cell))]
            tags = [tag for tag in cell.metadata.get("tags", []) if tag in _KEPT_TAGS]
            times = {k: v for k, v in cell.metadata.get("papermill", {}).items() if k in ("duration", "status")}
            cell.metadata = type(cell.metadata)(tags=tags, papermill=times)
            cell.pop("attachments", None)
            cell.id = f"cell-{number}"
        return said

    def _source(self, cell: Any) -> list[str]:
        tags = cell.metadata.get("tags", [])
        if {source := _trimmed(cell.source), _digest(source)} & self.shipped:
            return []
        if said := re.fullmatch(rf"(?:# |\*)({_SAID})\*?", cell.source):
            return [f"source {said[1]}"]
        if self.public:
            pass
        elif {"parameters", "injected-parameters"} & set(tags):
            cell.source = parameters_shown(cell.source)
        elif RELEASE not in tags:
            return [f"source {self._replace(cell, SOURCE_WITHHELD)}"]
        broken = self.guard.rules_broken(cell.source)
        return [f"source {self._replace(cell, _because(broken))}"] if broken else []

    def _replace(self, cell: Any, why: str) -> str:
        cell.source = f"# {why}" if cell.cell_type == "code" else f"*{why}*"
        return why

    def _outputs(self, cell: Any) -> list[str]:
        outputs, by_hand = cell.get("outputs", []), RELEASE in cell.metadata.get("tags", [])
        kept, said = [], []
        for output in outputs:
            shown, why = self._seen(output, by_hand)
            kept += [shown] if shown else []
            said += [f"output {why}"] if why else []
        # a sentence may be spread over several outputs
        if broken := self._broken(" ".join(map(_text, kept)), own=not (by_hand or self.public)):
            kept, said = [], [f"output {_because(broken)}"]
        notes = [_note(one) for one in dict.fromkeys(said)]
        if outputs or "outputs" in cell:
            cell.outputs = [*kept, *notes]
        return list(dict.fromkeys(said))

    def _seen(self, output: Any, by_hand: bool) -> tuple[Any, str]:
        """The output as it may be seen, or None; and why not, or that somebody released it."""
        if output.output_type == "error":
            return None, f"{re.sub(r'[^A-Za-z]', '', output.ename)}: withheld"
        if earlier := re.fullmatch(rf"output ({_SAID})\n", output.get("text", "")):
            return None, earlier[1]
        said = output.get("text", output.get("data", {}).get("text/markdown", ""))
        if NOT_SHOWN in said and not said.replace(NOT_SHOWN, "").strip():
            return _note(NOT_SHOWN), ""
        if self.nothing:
            return None, UNKNOWN
        data = output.get("data", {})
        words = data.get("text/markdown", data.get("text/plain", output.get("text", "")))
        if _LINES.fullmatch(words.strip()) and (words.strip() or set(data) <= {"text/plain", "text/markdown"}):
            return _note(words.strip()) if words.strip() else None, ""  # the line alone, in no other form
        tagged = [form for form in output.get("metadata", {}).get(TAG, []) if form in output.get("data", {})]
        if not tagged and (by_hand or self.public):
            shown = output.copy()
            if "data" in output:
                shown.metadata = type(output.metadata)()
            return shown, RELEASED if by_hand else ""
        if not tagged:
            return None, WITHHELD
        shown = output.copy()
        shown.data = type(output.data)({form: output.data[form] for form in tagged})
        shown.metadata = type(output.metadata)({TAG: tagged})
        broken = self._broken(_text(shown), own=True)
        return (None, _because(broken)) if broken else (shown, "")

    def _broken(self, text: str, own: bool) -> list[str]:
        return self.guard.rules_broken(text, numbers=not own)


def shipped_cells(start: Path | None = None) -> frozenset[str]:
    """Sources of all cells of the notebooks as git has them; without git, the hashes that came with the package."""
    root = project_root(start)

    def ask(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, encoding="utf-8")
        except OSError:
            return ""
        return done.stdout if done.returncode == 0 else ""

    names = [
        name for name in ask("ls-tree", "--name-only", "HEAD", "notebooks/").split("\n") if name.endswith(".ipynb")
    ]
    if not names:
        return frozenset(SHIPPED.read_text(encoding="utf-8").split())
    return frozenset(source for name in names for source in _sources(ask("show", f"HEAD:./{name}")))


def list_shipped(notebooks: Path) -> None:
    """Write `SHIPPED` anew, before a release: a list that is old withholds more, never less."""
    found = {_digest(source) for file in notebooks.glob("*.ipynb") for source in _sources(file.read_text("utf-8"))}
    SHIPPED.write_text("".join(f"{one}\n" for one in sorted(found)), encoding="utf-8")


def _sources(notebook: str) -> list[str]:
    return [_trimmed("".join(cell["source"])) for cell in json.loads(notebook or '{"cells": []}')["cells"]]


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def parameters_shown(source: str) -> str:
    """A parameters cell as plain assignments, without comments, and without the paths of a private source."""
    return "\n".join(f"{name} = {value!r}" for name, value in without_paths(_assigned(source)).items())


def _assigned(source: str) -> dict[str, Any]:
    """The parameters that a cell sets; other names in it may hold anything."""
    values: dict[str, Any] = {}
    with contextlib.suppress(SyntaxError, ValueError):
        for line in ast.parse(source).body:
            target = getattr(line, "target", None) or getattr(line, "targets", [None])[0]
            if isinstance(target, ast.Name) and target.id in (*RunParams.model_fields, "margin"):
                values[target.id] = ast.literal_eval(line.value)  # type: ignore[attr-defined]
    return values


def guard_of(folders: Iterable[Path]) -> Guard:
    """A guard that knows the cases of every run, finished or not, whose source is not shareable today."""
    import pandas as pd

    guard = Guard()
    for folder in folders:
        if _is_known(folder) and is_private(folder):
            said = _source(folder)
            named = " ".join((said["known"], *folder.parts[-4:]))  # study, model and task are said everywhere
            guard.add(pd.read_parquet(folder / "private" / "cases.parquet"), said["card"], named)
    return guard


def is_private(run: Path) -> bool:
    """Whether a run's cases may not be shown: by what its card says today, and by what it said then."""
    known = (run / "private" / "source.json").is_file()
    return not (known and _source(run).get("shareable") and card_of(run, {}).shareable)


def run_folders(study: Path) -> list[Path]:
    """Folders of all runs of a study that got as far as reading their source."""
    return [file.parents[1] for file in sorted(study.glob("*/*/seed*/private/source.json"))]


def share(notebook: Path, target: Path, results: Path) -> tuple[list[str], int, int]:
    """Write a copy of an executed notebook as `release` does: for one that ran in JupyterLab or by papermill.

    Returns:
        What was withheld, how many runs it was compared with, and how many private cases they have.

    Raises:
        DataError: the notebook's own run is not in ``results``, so that there is nothing to compare with.
    """
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    runs = [folder for study in sorted(results.glob("*")) for folder in run_folders(study)]
    own = _own_runs(content, runs, results)
    if not own:
        raise DataError(f"the run of {notebook.name} is not in {results}: nothing to compare it with; give --results")
    guard, public = guard_of(runs), not any(map(is_private, own))
    said = Filter(guard, shipped_cells(notebook.resolve().parent), public=public).notebook(content)
    nbformat.write(content, target)
    return said, len(runs), len(guard.cases)


def _own_runs(notebook: Any, runs: list[Path], results: Path) -> list[Path]:
    """Runs that the notebook's parameters name: its own, or all of the study that it compares."""
    values: dict[str, Any] = {}
    for cell in notebook.cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            values |= _assigned(cell.source)
    named = [run for run in runs if run.parents[2] == results / str(values.get("study"))]
    if "model" not in values:
        return named
    where = (slug(values["model"]), f"seed{values['seed']}")
    return [run for run in named if (run.parents[1].name, run.name) == where]


def card_of(run: Path, parameters: Mapping[str, Any]) -> DataCard:
    """The card of a run's source as it is today; where it is gone, as it was."""
    file = run / "private" / "source.json"
    said = _source(run) if file.is_file() else {}
    try:
        return load_card(said.get("data") or said.get("card") or parameters["data"])
    except DataError:
        if not said:
            raise
        return DataCard.model_validate_json(said["known"])


def _source(run: Path) -> dict[str, Any]:
    return json.loads((run / "private" / "source.json").read_text(encoding="utf-8"))


def _is_known(run: Path) -> bool:
    return all((run / "private" / name).is_file() for name in ("source.json", "cases.parquet"))


def _trimmed(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.strip().split("\n"))


def _because(broken: list[str]) -> str:
    return f"withheld: {', '.join(broken)}"


def _text_files(study: Path) -> list[Path]:
    """What is written outside ``private/`` but notebooks, which are looked at cell by cell, and the report."""
    kinds = (".json", ".csv", ".md", ".tex", ".txt", ".svg", ".jsonl")
    files = (file for file in _outside_private(study) if file.suffix in kinds)
    return [file for file in files if file.is_file() and study / "report" not in file.parents]


def _words_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")
    return svg_words(text) if file.suffix == ".svg" else text


def _note(text: str) -> Any:
    import nbformat

    return nbformat.v4.new_output("stream", name="stdout", text=f"{text}\n")


def _text(output: Any) -> str:
    """What can be read in an output; of a figure what is written in it."""
    parts = [output.get("text", "")]
    for kind, value in output.get("data", {}).items():
        text = "".join(value) if isinstance(value, list) else str(value)
        parts += [svg_words(text) if kind == "image/svg+xml" else text] if not kind.startswith("image/p") else []
    return "\n".join(parts)
