"""Typed parameters: what a run is told, refused before a kernel starts when it cannot be meant.

A notebook keeps its parameters as flat variables, as papermill and its readers want them; `RunParams.from_notebook`
turns them into the frozen object that everything else takes. Their defaults stand in the notebook alone.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medstudy.arms import TRAINED

#: The models that come with the package.
BUILTIN = ("builtin/llama", "builtin/mistral")
#: Differences smaller than this do not matter, unless the study says otherwise.
MARGIN = 0.03


class ParamsError(ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message names value and remedy."""


def project_root(start: Path | None = None) -> Path:
    """The nearest folder upwards with ``notebooks`` and ``params``, else this one: JupyterLab works in the former."""
    here = (start or Path.cwd()).resolve()
    return next((p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "params").is_dir()), here)


def _tasks() -> dict[str, dict[str, Any]]:
    """Task -> defaults in its notebook: of the project one works in, else of the checkout the package came with."""
    found: dict[str, dict[str, Any]] = {}
    for root in (Path(__file__).resolve().parents[1], project_root()):
        for file in sorted((root / "notebooks").glob("*.ipynb")):
            values = _cell_tagged_parameters(file, file.stat().st_mtime_ns)
            if "dpo_beta" in values:  # else it is no task's, and does not hide one of that name
                found[file.stem] = values
    return found


@cache
def _cell_tagged_parameters(file: Path, changed: int) -> dict[str, Any]:
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        tagged = iter([cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])])
    except (ValueError, KeyError, TypeError):  # half a notebook, or one of old: no task's
        return {}
    return {name: value for name, value in assigned("".join(next(tagged, ""))).items() if value is not ...}


def _known_task(name: str) -> str:
    if name not in (tasks := _tasks()):
        own = f"one of your own needs notebooks/{name}.ipynb"
        raise ValueError(f"unknown task {name!r}{nearest(name, tasks)} (allowed: {', '.join(tasks)}; {own})")
    return name


#: A task has a notebook of its name.
TaskName = Annotated[str, AfterValidator(_known_task)]
DpoLoss = Literal["sigmoid", "hinge", "ipo", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm", "sft"]
PairSource = Literal["own_errors", "labels", "card", "ratings", "file"]
#: Arm -> its parameters that may be chosen on validation cases.
SETTINGS = {arm: (f"{arm}_learning_rate", f"{arm}_epochs") for arm in TRAINED}
SETTINGS["dpo"] += ("dpo_beta", "dpo_loss", "dpo_loss_weights")
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


def _known_model(name: str) -> str:
    if name.startswith("builtin/") and name not in BUILTIN:
        raise ValueError(f"no such built-in model{nearest(name, BUILTIN)} (allowed: {', '.join(BUILTIN)})")
    return name


def _fair(candidates: dict[str, Any]) -> dict[str, Any]:
    for arm, tries in candidates.items():
        if arm not in SETTINGS:
            raise ValueError(f"unknown arm {arm!r} (allowed: {', '.join(SETTINGS)})")
        if other := {name for one in tries for name in one} - set(SETTINGS[arm]):
            raise ValueError(f"{arm}: {min(other)!r} is none of {', '.join(SETTINGS[arm])}")
    after = {arm: len(candidates.get(arm, [])) for arm in SETTINGS if arm != "sft"}
    if len(set(after.values())) > 1:
        raise ValueError(f"as many for each arm after SFT, or the comparison is not fair; now {after}")
    return candidates


class RunParams(BaseModel):
    """One run: a study x task x model x seed. Order, defaults and what they mean: the notebook of the task."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    task: TaskName
    study: str = Field(pattern=r"^[\w.-]+$")
    model: Annotated[str, Field(min_length=1), AfterValidator(_known_model)]
    seed: Natural
    data: str = Field(min_length=1)
    data_root: str
    results: str
    n_train: Natural
    n_prefer: Natural
    n_valid: Natural
    n_test: Natural
    split_seed: Natural
    overlong: Literal["error", "exclude", "truncate"]
    few_shot_k: int = Field(ge=0, le=32)
    dtype: Literal["auto", "float32", "bfloat16"]
    quantization: Literal["none", "4bit"]
    gradient_checkpointing: bool
    batch_size: Count
    gradient_accumulation: Count
    lora_rank: Count
    sft_learning_rate: Rate
    sft_epochs: Positive
    sft_more_learning_rate: Rate
    sft_more_epochs: Positive
    sft_chosen_learning_rate: Rate
    sft_chosen_epochs: Positive
    pair_source: PairSource
    pair_file: str
    samples_per_case: Count
    pairs_per_case: Count
    dpo_learning_rate: Rate
    dpo_epochs: Positive
    dpo_beta: Positive
    dpo_loss: Annotated[list[DpoLoss], Field(min_length=1), BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
    dpo_loss_weights: list[Positive]
    candidates: Annotated[dict[str, list[dict[str, Any]]], AfterValidator(_fair)]
    max_new_tokens: Count
    eval_batch_size: Count

    @model_validator(mode="after")
    def _pairs_have_their_file_and_losses_their_weights(self) -> RunParams:
        if (self.pair_source in ("ratings", "file")) != bool(self.pair_file):
            given = f"pair_source = {self.pair_source!r} with pair_file = {self.pair_file!r}"
            raise ValueError(f"{given}: the sources 'ratings' and 'file' read a file, and only they do")
        if len(self.dpo_loss_weights) not in (0, len(self.dpo_loss)):
            raise ValueError(f"dpo_loss_weights = {self.dpo_loss_weights}: give one for each of {self.dpo_loss}")
        return self

    def tries(self, arm: str) -> list[RunParams]:
        """The parameters with each of the ``arm``'s candidates, or as they are; ParamsError if one is out of range."""
        tries, plain = self.candidates.get(arm) or [{}], self.model_dump()
        return [validated(RunParams, plain | one, dict.fromkeys(one, f"candidates of {arm}")) for one in tries]

    def settings(self, arm: str) -> dict[str, Any]:
        """What may be chosen for an arm, with its values."""
        return {name: getattr(self, name) for name in SETTINGS[arm]}

    @classmethod
    def from_notebook(cls, task: str, namespace: Mapping[str, Any] | None = None) -> RunParams:
        """Collect the parameters that stand as flat variables in the notebook that calls this, or in ``namespace``.

        ParamsError where a parameters cell (the executed ones are in ``In``) gives a value to a name that is no
        parameter, or a malformed one.
        """
        if namespace is None:
            from IPython import get_ipython

            namespace = get_ipython().user_ns
        names = [*cls.model_fields, *_written(namespace.get("In", []))]
        plain = (str, int, float, bool, list, dict, type(None))
        found = {n: namespace[n] for n in names if n in namespace and isinstance(namespace[n], plain)}
        return resolve(found | {"task": task})


def _written(cells: list[str]) -> list[str]:
    """Names that the parameters cells since the last collection assign; if none was run since, those before it."""
    found: list[str] = []
    for text in reversed(cells):
        if found and "from_notebook" in text:
            break
        names = assigned(text)
        if ... not in names.values() or names.keys() & RunParams.model_fields.keys():
            found += names
    return found


def assigned(source: str, mixed: bool = False) -> dict[str, Any]:
    """Name -> literal, `...` for an expression, of a cell that only assigns to names; if ``mixed`` of any cell."""
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # a cell with a magic
        return {}
    found: dict[str, Any] = {}
    for line in lines:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if isinstance(line, (ast.Assign, ast.AnnAssign)) and all(isinstance(t, ast.Name) for t in targets):
            try:
                value = ast.literal_eval(line.value) if line.value else ...
            except ValueError:
                value = ...
            found |= {target.id: value for target in targets}
        elif not mixed:
            return {}
    return found


def resolve(values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> RunParams:
    """Validate one run's values, the rest from its notebook; ``where``, the file of a name, is said in the error."""
    try:
        task = _known_task(str(values.get("task")))
    except ValueError as error:
        raise ParamsError(f"parameters: {error}") from None
    return validated(RunParams, _tasks()[task] | values, where or {})


def refuse_missing(params: RunParams) -> None:
    """Raise ParamsError if a run asks for 4-bit weights and the library that reads them is not installed."""
    if params.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        remedy = "`pip install -e '.[gpu]'`, or use quantization = 'none'"
        raise ParamsError(f"quantization = '4bit' needs bitsandbytes, which is not installed: {remedy}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A flat YAML mapping; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold `name: value` lines, not a {type(values).__name__}")
    return values


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` or an empty string."""
    hit = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{hit[0]}'?" if hit else ""


def validated(kind: type[BaseModel], values: Mapping[str, Any], where: Mapping[str, str]) -> Any:
    """A model of ``kind`` from ``values``; ParamsError with every fault and the file that ``where`` has for it."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ParamsError("\n".join(explained(error, where, list(kind.model_fields)))) from None


def explained(error: ValidationError, where: Mapping[str, str], allowed: Sequence[str] = ()) -> Iterator[str]:
    """Every fault in a line: the file of its name (the last where none is known), name and value, what is wrong."""
    for fault in error.errors():
        name = ".".join(part for part in map(str, fault["loc"]) if part != "[key]")
        said = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            said = f"unknown parameter '{name}'{nearest(name, allowed)} (allowed: {', '.join(allowed)})"
        elif fault["type"] == "missing":
            said = f"'{name}' is missing"
        elif quoting := re.match(r"columns\.(.*?\.)?(map|missing)\b", name):  # cells of patients, in a data card
            said = f"{quoting[0]}: {said}"
        elif name:  # the content of a whole section is no help
            said = f"{name}: {said}" if isinstance(fault["input"], dict) else f"{name} = {fault['input']!r}: {said}"
        yield f"{where.get(name.partition('.')[0], next(reversed(where.values()), 'parameters'))}: {said}"
