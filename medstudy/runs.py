"""A run's folder: finished stages, provenance, and the files that tools outside the package read.

A stage is keyed by the content of what it was made from (rows, trainer class and arguments, the adapter it continues,
code and library versions), and every key has a folder of its own: a run that is started again redoes exactly what has
changed, be it a parameter or a cell, and going back to an earlier value finds what was made with it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES, CONTRASTS
from medstudy.files import as_json, code_fingerprint, fingerprint, private_folder, read_json, slug, write_json
from medstudy.params import RunParams, assigned, project_root
from medstudy.provenance import provenance

if TYPE_CHECKING:
    from medstudy.data.card import DataCard
    from medstudy.data.cases import Case

#: Facts that the package itself notes of a run.
FACTS = frozenset({"shareable", "labels", "positive", "model_revision", "dtype", "compute_dtype"})
FACTS |= {"pairs", "paired_cases", "enough_pairs", "few_shot_examples", "context"}


class RunError(RuntimeError):
    """What a run would say of itself is not what it was made with; the message names stage and remedy."""


def run_folder(params: RunParams) -> Path:
    """``<results>/<study>/<model-slug>/<task>/seed<k>``; relative results start at the project root."""
    study = project_root() / params.results / params.study
    return study / slug(params.model) / params.task / f"seed{params.seed}"


def without_paths(parameters: Mapping[str, Any], card: str = "private") -> dict[str, Any]:
    """Parameters of a private run as they may be seen: a path may name a patient; ``card`` stands for the card's."""
    shown = {name: "private" for name in ("data_root", "pair_file") if parameters.get(name)}
    shown |= {"results": "private"} if Path(parameters.get("results") or "").is_absolute() else {}
    if re.search(r"[/\\.]", parameters.get("data") or ""):
        shown["data"] = card
    return {**parameters, **shown}


class Stage:
    """One finished or unfinished step of a run, with a private folder of its own.

    Attributes:
        key: what the stage depends on; a stage made from this one takes the key among its inputs.
        folder: of this name and key; a start that was killed may have left files in it.
        start: the stage that it goes on from; None if from the base model.
        done: finished, by this start or an earlier one.
        facts: what was measured while it ran (seconds, steps, …), for gates, costs and provenance.
        made_with: parameter -> value that its trainer was given; ``args``, all of its arguments.
        earlier: seconds of a start that was killed, where it is gone on with.
    """

    def __init__(self, run: Run, name: str, key: str, start: Stage | None = None) -> None:
        self.run, self.name, self.key, self.start = run, name, key, start
        self.folder = run.private / "stages" / name / key
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._marker = self.folder / "stage.json"
        self.done = self._marker.is_file()
        self.facts: dict[str, Any] = read_json(self._marker)
        self.made_with: dict[str, Any] = {}
        self.args: Any = None
        self._started = time.monotonic()
        self.earlier = 0.0

    def finish(self, **facts: Any) -> None:
        """Mark the stage as done; its files must be complete by now."""
        seconds = self.earlier + time.monotonic() - self._started
        self.facts = {"seconds": round(seconds, 2), **facts}
        write_json(self._marker, self.facts)
        self.done = True


class Run:
    """A run's folder. ``private/`` (mode 0700) holds everything that may hold a case's text."""

    def __init__(self, params: RunParams) -> None:
        self.params = params
        self.folder = run_folder(params)
        self.private = private_folder(self.folder / "private")
        # until the cases are read anew, nobody knows what to look for in what this start shows
        (self.private / "source.json").unlink(missing_ok=True)
        self.stages: dict[str, Stage] = {}
        self.facts: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}
        self._saved: dict[str, Any] = {}
        self.tried: dict[str, list[dict[str, Any]]] = {}
        self.told: dict[str, list[dict[str, Any]]] = {}
        self._card = "private"  # its name, once it is known
        self._source: set[str] = set()
        self._started = datetime.now(UTC)
        # an old end marker must not vouch for this start
        (self.folder / "run.json").unlink(missing_ok=True)

    def stage(self, name: str, code: tuple[str, ...], start: Stage | None = None, **inputs: Any) -> Stage:
        """Open the stage ``name``, made from ``inputs`` and ``start`` by the package modules ``code``."""
        gc.collect()  # trainers of the stage before, which point at one another
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # what glibc would keep for this process
        key = fingerprint([inputs, start.key if start else None, code_fingerprint(code)])
        stage = self.stages[name] = Stage(self, name, key, start)
        self.status(name, state="reused" if stage.done else "running")
        return stage

    def settle(self, stage: Stage, tried: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
        """Take one of several trainings of a name as that arm; note what was ``tried``, and is ``told`` in run.json."""
        self.stages[stage.name] = stage
        self.tried[stage.name], self.told[stage.name] = tried, told

    def keep_source(self, card: DataCard, cases: list[Case]) -> None:
        """Keep all texts and identifiers of the cases in ``private/``, for the scan before a report; note the card."""
        import pandas as pd

        ids = [name for name in ("case_id", "group_id") if getattr(card.columns, name)]
        table = pd.DataFrame({name: [getattr(case, name) for case in cases] for name in ("case_id", "group_id")})
        table["texts"] = [_strings([case.text, case.gold, case.details, case.demonstration]) for case in cases]
        table["ids"] = table[ids].to_numpy().tolist()
        table.to_parquet(self.private / "cases.parquet")
        self._source = {_identity(case) for case in cases}
        self.facts |= {"shareable": card.shareable, "labels": card.labels, "positive": card.positive}
        said = {"card": card.name, "shareable": card.shareable, "known": card.model_dump_json()}
        write_json(self.private / "source.json", said | {"data": self.params.data})
        self._card = card.name

    def keep(self, name: str, value: Any) -> None:
        """Write ``splits`` (RunError if not of `keep_source`'s cases) or ``pairs`` into ``private/``, JSON lines."""
        drawn = {_identity(case) for part in vars(value).values() for case in part} if name == "splits" else set()
        if self._source and not drawn <= self._source:
            raise RunError("splits are not of the cases as they were read last; run from the cell that loads them on")
        lines = map(as_json, value if isinstance(value, list) else [value])
        file = self.private / f"{name}.jsonl"
        file.touch(0o600)
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self.kept[name] = value

    def split_of(self, cases: list[Case]) -> str:
        """The split whose cases these are, all of them and in order; ``other`` for any others."""
        if "splits" not in self.kept:
            return "test"
        return next((name for name, kept in vars(self.kept["splits"]).items() if kept == cases), "other")

    def status(self, stage: str, **progress: Any) -> None:
        """Where the run is now, for `medstudy status`; replaced at every call."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.folder / "status.json", {"stage": stage, "pid": os.getpid(), "time": now, **progress})

    def save(self, name: str, value: Any) -> None:
        """Write one of the contract's JSON files beside the notebook."""
        # a group of one's own may be a handful of patients, or be called after one
        if name in ("metrics", "baselines") and not self.facts.get("shareable"):
            value = {arm: cells for arm, cells in value.items() if arm in ARMS or arm in BASELINES}
        if name == "contrasts" and not self.facts.get("shareable"):
            value = [row for row in value if row["contrast"] in map("-".join, CONTRASTS)]
        write_json(self.folder / f"{name}.json", value)
        self._saved[name] = self._answered()

    def finish(self, **facts: Any) -> dict[str, Any]:
        """Write run.json, the end marker, and return it; RunError if anything is not of this start and parameters."""
        self._refuse_unread_values()
        self._refuse_mixtures()
        self.status("finished", state="ok")
        parameters, facts = self.params.model_dump(), self.facts | facts
        write_json(self.private / "parameters.json", parameters)
        kept = self.private / "results" / fingerprint(parameters)
        if not self.facts.get("shareable"):  # what a cell added may be a text, unless it is a number
            parameters = without_paths(parameters, self._card)
            facts = {k: v for k, v in facts.items() if k in FACTS}
        record = {
            "status": "ok",
            "parameters": parameters,
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {name: stage.facts.get("seconds") for name, stage in self.stages.items()},
            "stages": {name: {"key": stage.key, **self._facts_of(stage)} for name, stage in self.stages.items()},
            "tried": [row for rows in self.told.values() for row in rows],
            **provenance(),
            **facts,
        }
        write_json(self.folder / "run.json", record)
        kept.mkdir(parents=True, exist_ok=True)
        for file in (*self.folder.glob("*.json"), self.private / "predictions.parquet"):
            if file.is_file() and file.name != "status.json":
                shutil.copy2(file, kept)  # where a run with another parameter does not replace them
        return record

    def _facts_of(self, stage: Stage) -> dict[str, Any]:
        """What was measured; of a private run no words that a cell may have added."""
        free = self.facts.get("shareable")
        return {k: v for k, v in stage.facts.items() if free or not (isinstance(v, str) and re.search(r"\s", v))}

    def _answered(self) -> dict[str, str]:
        return {name: stage.key for name, stage in self.stages.items() if name.startswith("answers_")}

    def _refuse_unread_values(self) -> None:
        """A parameters cell that was run after the values were collected shows others than the run has."""
        from IPython import get_ipython  # not needed by commands that read runs

        shell = get_ipython()
        for cell in reversed(shell.user_ns.get("In", []) if shell else []):
            if "from_notebook" in cell:
                return
            for name, value in assigned(cell).items():
                if name in RunParams.model_fields and value is not ... and value != getattr(self.params, name):
                    was = f"a parameters cell says {name} = {value!r}, but this run has {getattr(self.params, name)!r}"
                    raise RunError(f"{was}: run the cell with from_notebook, and those below it")

    def _refuse_mixtures(self) -> None:
        """Cells can be run in any order: what run.json says must be what everything was made with."""
        for name in ("splits", "pairs"):
            if name not in self.kept:
                raise RunError(f"the {name} are of an earlier start; run the cell that makes them, and those below it")
        for name in ("metrics", "contrasts", "gates"):
            if self._saved.get(name) != self._answered():
                raise RunError(f"{name}.json is not of the answers as they are now; run the cell that saves it again")
        for arm in read_json(self.folder / "metrics.json"):
            made = self.stages.get(f"answers_{arm}")
            if made is None:
                raise RunError(f"the answers of {arm} are of an earlier start; run the cell that makes them again")
            self._refuse_other_answers(arm, made)
            while start := made.start:
                self._refuse_other_values(start)
                if self.stages.get(start.name) is not start:
                    was = f"{made.name} was made from a training {start.name} that is not the one of this start"
                    raise RunError(f"{was}: run again from the cell that trains {start.name} on")
                made = start

    def _refuse_other_answers(self, arm: str, made: Stage) -> None:
        """What was scored must be what the arm answered."""
        import pandas as pd

        files = (self.private / "predictions.parquet", made.folder / "outputs.parquet")
        if not all(file.is_file() for file in files):
            return
        scored, kept = (pd.read_parquet(file) for file in files)
        if scored.loc[scored["arm"] == arm, "output"].tolist() != [text for (text,) in kept["outputs"]]:
            raise RunError(f"what was scored are not {arm}'s answers as they are now; run from the cell that scores on")

    def _refuse_other_values(self, training: Stage) -> None:
        chosen = (row["settings"] for row in self.tried.get(training.name, []) if row["chosen"])
        now = self.params.model_dump() | next(chosen, {})
        for name, value in training.made_with.items():
            if value != now[name]:
                was = f"{training.name} was trained with {name} = {value!r}, but the parameters say {now[name]!r}"
                raise RunError(f"{was}: set it in the parameters cell, and run the notebook from there on")


def _identity(case: Case) -> str:
    """Tells cases apart by what shortening a text leaves as it is."""
    return fingerprint([case.case_id, case.group_id, case.gold])


def _strings(value: Any) -> list[str]:
    """Every text inside ``value``."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]
