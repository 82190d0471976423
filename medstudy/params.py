"""Typed parameters: what a run is told, refused before a kernel starts when it cannot be meant.

A notebook keeps its parameters as flat variables, because papermill and a reader of JupyterLab want
them so; `RunParams.from_notebook` turns them into the frozen object that everything else takes.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)


def _known_task(name: str) -> str:
    from medstudy.tasks import TASK_TYPES

    if name not in TASK_TYPES:
        allowed = ", ".join(TASK_TYPES)
        raise ValueError(f"unknown task {name!r}{nearest(name, TASK_TYPES)} (allowed: {allowed})")
    return name


#: A task of `medstudy.tasks`.
TaskName = Annotated[str, AfterValidator(_known_task)]
DpoLoss = Literal["sigmoid", "hinge", "ipo", "robust", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm", "sft"]


PairSource = Literal["own_errors", "labels", "card", "ratings", "file"]


def _each(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """One value, or a list of values to choose from on the validation split."""
    if not isinstance(value, list):
        return check(value)
    if not value:
        raise ValueError("an empty list leaves nothing to choose from; give one value or several")
    return [check(one) for one in value]


#: A number, or a list of numbers of which the best on the validation split is taken (`medstudy.training.search`).
Rate = Annotated[float, Field(gt=0, le=1), WrapValidator(_each), PlainSerializer(lambda v: v)]
Positive = Annotated[float, Field(gt=0), WrapValidator(_each), PlainSerializer(lambda v: v)]
Count = Annotated[int, Field(ge=1), WrapValidator(_each), PlainSerializer(lambda v: v)]
#: Parameters that may be lists, by the training whose choice they are, in order.
SEARCHED: dict[str, tuple[str, ...]] = {
    "sft": ("sft_learning_rate", "sft_epochs", "lora_rank"),
    "dpo": ("dpo_learning_rate", "dpo_epochs", "dpo_beta"),
    "sft_more": ("sft_more_learning_rate",),
}


#: The models that come with the package.
BUILTIN = ("builtin/llama", "builtin/mistral")
#: Differences smaller than this do not matter, unless the study says otherwise.
MARGIN = 0.03


class ParamsError(ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message names value and remedy."""


class RunParams(BaseModel):
    """One run: a study x task x model x seed. Order and defaults are those of the notebooks."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    task: TaskName
    study: str = Field("mine", pattern=r"^[\w.-]+$")
    model: str = Field("builtin/llama", min_length=1)
    seed: int = Field(0, ge=0)
    data: str = Field(min_length=1)
    data_root: str = ""
    results: str = "results"
    n_train: int = Field(100, ge=0)
    n_valid: int = Field(60, ge=0)
    n_test: int = Field(200, ge=0)
    split_seed: int = Field(0, ge=0)
    overlong: Literal["error", "exclude", "truncate"] = "error"
    few_shot_k: int = Field(1, ge=0, le=32)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "4bit"] = "none"
    gradient_checkpointing: bool = False
    batch_size: int = Field(8, ge=1)
    processes: int = Field(1, ge=1)
    sharded: bool = False
    gradient_accumulation: int = Field(1, ge=1)
    lora_rank: Count = 32
    sft_learning_rate: Rate = 3e-3
    sft_epochs: Positive = 8
    sft_more_learning_rate: Rate = 3e-4
    pair_source: PairSource = "own_errors"
    pair_file: str = ""
    samples_per_case: int = Field(6, ge=1)
    pairs_per_case: int = Field(2, ge=1)
    pair_counts: list[Annotated[int, Field(ge=1)]] = []
    dpo_learning_rate: Rate = 3e-4
    dpo_epochs: Positive = 1
    dpo_beta: Positive = 0.1
    dpo_loss: list[DpoLoss] = Field(["sigmoid", "sft"], min_length=1)
    max_new_tokens: int = Field(48, ge=1)
    eval_batch_size: int = Field(64, ge=1)

    @field_validator("dpo_loss", mode="before")
    @classmethod
    def _one_loss_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _built_in_models_are_there(cls, name: str) -> str:
        if name.startswith("builtin/") and name not in BUILTIN:
            raise ValueError(f"no such built-in model{nearest(name, BUILTIN)} (allowed: {', '.join(BUILTIN)})")
        return name

    @model_validator(mode="after")
    def _pairs_have_their_file(self) -> RunParams:
        if (self.pair_source in ("ratings", "file")) != bool(self.pair_file):
            raise ValueError(
                f"pair_source = {self.pair_source!r} with pair_file = {self.pair_file!r}: the sources "
                "'ratings' and 'file' read a file, and only they do"
            )
        return self

    @model_validator(mode="after")
    def _processes_share_a_batch(self) -> RunParams:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be shared by processes = {self.processes}; make it a multiple"
            )
        return self

    @model_validator(mode="after")
    def _shards_need_processes(self) -> RunParams:
        if self.sharded and self.processes == 1:
            raise ValueError("sharded = True spreads the weights over processes; give processes = 2 or more")
        if self.sharded and self.quantization != "none":
            raise ValueError("sharded = True takes no 4-bit weights; use quantization = 'none', or one GPU")
        return self

    def trials(self, training: str) -> list[RunParams]:
        """Every combination of the values to choose from for one training (`SEARCHED`); one, usually."""
        names = SEARCHED[training]
        values = [v if isinstance(v := getattr(self, name), list) else [v] for name in names]
        chosen = itertools.product(*values)
        return [self.model_copy(update=dict(zip(names, some, strict=True))) for some in chosen]

    @classmethod
    def from_notebook(cls, task: str, namespace: Mapping[str, Any]) -> RunParams:
        """Collect a notebook's flat parameters from ``globals()``.

        Any other plain value found there can only be a misspelt parameter that papermill injected, so it
        is refused: papermill itself only warns and goes on with the default. In a kernel where the
        notebook has run before, its own variables are there too: then only what looks like a parameter is.

        Raises:
            ParamsError: unknown, missing or malformed parameter.
        """
        given = {k: v for k, v in namespace.items() if _is_parameter(k, v)}
        if isinstance(namespace.get("params"), cls):
            given = {k: v for k, v in given.items() if difflib.get_close_matches(k, cls.model_fields, 1, 0.85)}
        return resolve(given | {"task": task})


class StudyParams(BaseModel):
    """A study: the runs that one ``params/<study>`` folder describes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    question: str = ""
    models: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    tasks: dict[TaskName, dict[str, int | str]] = Field(min_length=1, description="task -> engine resources")
    margin: float = Field(MARGIN, gt=0, lt=1, description="differences smaller than this do not matter")
    folder: Path

    @field_validator("seeds", "models")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is given twice: it would be one run, counted as two")
        return values

    def run(self, task: str, model: str, seed: int) -> RunParams:
        """Parameters of one run: shared.yaml, then <task>.yaml, then model and seed."""
        values = read_yaml(self.folder / "shared.yaml") | read_yaml(self.folder / f"{task}.yaml")
        fixed = {"task": task, "study": self.name, "model": model, "seed": seed}
        # shared.yaml may say the study's name, so that plain papermill writes to the same place
        clash = sorted(name for name, value in fixed.items() if values.get(name, value) != value)
        if clash:
            said = ", ".join(f"{name} = {values[name]!r}" for name in clash)
            raise ParamsError(f"{self.folder}: {said}, but study.yaml says otherwise; remove it from the task files")
        found = resolve(values | fixed, where=str(self.folder / f"{task}.yaml"))
        gpus = int(self.tasks[task].get("gpu", 0))
        if gpus and gpus != found.processes:
            raise ParamsError(
                f"{self.folder}: {task} asks for gpu: {gpus} in study.yaml and has processes = "
                f"{found.processes}; each process trains on one GPU, so make them equal"
            )
        return found

    def runs(self) -> list[RunParams]:
        """Every run of the study, in the order task, model, seed."""
        return [self.run(t, m, s) for t in self.tasks for m in self.models for s in self.seeds]


def load_study(folder: str | Path) -> StudyParams:
    """Read ``<folder>/study.yaml``; the study bears the folder's name.

    Raises:
        ParamsError: the folder or a file is missing, or a key or value is not allowed.
    """
    folder = Path(folder)
    if not (folder / "study.yaml").is_file():
        found = sorted(p.parent.name for p in folder.parent.glob("*/study.yaml"))
        raise ParamsError(f"{folder}/study.yaml does not exist; studies beside it: {', '.join(found) or 'none'}")
    values = read_yaml(folder / "study.yaml")
    values["tasks"] = {k: v or {} for k, v in _as_mapping(values.get("tasks")).items()}
    return _validate(StudyParams, values | {"name": folder.name, "folder": folder}, str(folder / "study.yaml"))


def resolve(values: Mapping[str, Any], where: str = "parameters") -> RunParams:
    """Validate one run's values; ``where`` is named in the error."""
    return _validate(RunParams, values, where)


def refuse_missing(params: RunParams) -> None:
    """Raise ParamsError if a run asks for what is not installed: 4-bit weights need a library more."""
    if params.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ParamsError(
            "quantization = '4bit' needs bitsandbytes, which is not installed: `pip install -e '.[gpu]'`, "
            "or use quantization = 'none'"
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping; an empty file is an empty mapping."""
    if not path.is_file():
        raise ParamsError(f"{path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ParamsError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values or {}


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` or an empty string."""
    hit = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{hit[0]}'?" if hit else ""


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _validate(kind: type[BaseModel], values: Mapping[str, Any], where: str) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(e, kind, where) for e in error.errors())) from None


def _explain(error: Any, kind: type[BaseModel], where: str) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if not name:
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "extra_forbidden":
        allowed = list(kind.model_fields)
        return f"{where}: unknown parameter '{name}'{nearest(name, allowed)} (allowed: {', '.join(allowed)})"
    if error["type"] == "missing":
        return f"{where}: parameter '{name}' is missing"
    if error["loc"][-1] == "[key]":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    return f"{where}: {name} = {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"


def _is_parameter(name: str, value: Any) -> bool:
    if name.startswith("_") or name in {"In", "Out", "task"} or isinstance(value, ModuleType):
        return False
    return isinstance(value, (str, int, float, bool, list, dict)) or value is None
