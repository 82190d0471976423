"""A study: the runs that one ``params/<study>`` folder describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from medstudy.params import MARGIN, Count, ParamsError, RunParams, TaskName, project_root, read_yaml, resolve, validated

Resources = Annotated[dict[str, int | str], BeforeValidator(lambda given: given or {})]


def _each_once(values: list[Any]) -> list[Any]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice: it would be one run, counted as two")
    return values


class StudyParams(BaseModel):
    """A study: the runs that one ``params/<study>`` folder describes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    question: str = ""
    models: Annotated[list[str], Field(min_length=1), AfterValidator(_each_once)]
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)]
    tasks: dict[TaskName, Resources] = Field(min_length=1, description="task -> engine resources")
    margin: float = Field(MARGIN, gt=0, lt=1, description="differences smaller than this do not matter")
    looks: list[Count] = Field([], max_length=5, description="seeds a cell at which results are looked at")
    folder: Path

    @model_validator(mode="after")
    def _seeds_make_a_look(self) -> StudyParams:
        now = len(self.seeds)
        if self.looks and (self.looks != sorted(set(self.looks)) or now not in self.looks):
            raise ValueError(f"looks = {self.looks}: rising numbers of seeds, one of them {now}, as many as now")
        return self

    @property
    def all_looks(self) -> list[int]:
        """Numbers of trainings a cell at which results are looked at; the last is all of them."""
        return self.looks or [len(self.seeds)]

    def run(self, task: str, model: str, seed: int) -> RunParams:
        """Parameters of one run: shared.yaml, then <task>.yaml, then model and seed."""
        fixed = {"task": task, "study": self.name, "model": model, "seed": seed}
        values, where = {}, dict.fromkeys(fixed, f"{self.folder}/study.yaml")
        for file in (self.folder / f"{name}.yaml" for name in ("shared", task)):
            values |= (told := read_yaml(file))
            where |= dict.fromkeys(told, str(file))
        # shared.yaml may say the study's name, so that plain papermill writes to the same place
        if clash := {name: values[name] for name, value in fixed.items() if values.get(name, value) != value}:
            said = ", ".join(f"{name} = {value!r}" for name, value in clash.items())
            raise ParamsError(f"{self.folder}: {said}, but study.yaml says otherwise; remove it from the task files")
        return resolve(values | fixed, where)

    def runs(self) -> list[RunParams]:
        """Every run of the study, in the order task, model, seed."""
        return [self.run(t, m, s) for t in self.tasks for m in self.models for s in self.seeds]


def load_study(folder: str | Path) -> StudyParams:
    """Read ``<folder>/study.yaml``; ParamsError where it is missing, or a key or value is not allowed."""
    folder = Path(folder)
    if not (folder / "study.yaml").is_file():
        places = (folder.parent, project_root(folder) / "params")
        found = sorted({file.parent.name for place in places for file in place.glob("*/study.yaml")})
        raise ParamsError(f"{folder}/study.yaml does not exist; studies: {', '.join(found) or 'none'}")
    values = read_yaml(folder / "study.yaml")
    where = dict.fromkeys(values, f"{folder}/study.yaml")
    return validated(StudyParams, values | {"name": folder.name, "folder": folder}, where)
