"""The data card: one YAML file says what a source is, where it lies and how a row becomes a case.

Every value is read as text (`no`, `1` and `007` stay as written), then typed. docs/data_cards.md explains the keys.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from medstudy.data.cases import DataError
from medstudy.files import from_root
from medstudy.params import TaskName, explained, nearest
from medstudy.tasks import TASK_TYPES
from medstudy.tasks.reading import labels_in

SplitName = Literal["train", "prefer", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(SplitName)
Text = Annotated[str, Field(min_length=1)]
CARDS = Path(__file__).resolve().parents[2] / "params" / "data"


def code_key(text: str) -> str:
    """A code or an id as they are compared: ``1``, ``1.`` and ``1.0`` are one."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", text.strip())


class Section(BaseModel):
    """A part of a card: frozen, and a key that it does not know is refused with the nearest one it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        allowed = list(cls.model_fields)
        if isinstance(values, dict) and (unknown := values.keys() - allowed):
            key = min(map(str, unknown))
            raise ValueError(f"unknown key '{key}'{nearest(key, allowed)} (allowed: {', '.join(allowed)})")
        return values


class File(Section):
    """One file: its name (with sub-folders, if that tells it from others), how to read it and where to get it."""

    path: Text
    split: SplitName | None = None
    sheet: str = ""
    skip_rows: int = Field(0, ge=0)
    url: str = Field("", pattern=r"^(https?://\S+)?$")
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")


class Files(Section):
    """Files of one shape; ``decimal`` is the sign in numbers that stand as text."""

    kind: Literal["files"] = "files"
    files: list[File] = Field(min_length=1)
    format: Literal["csv", "json", "jsonl", "parquet", "xlsx"] = "csv"
    sep: str = ","
    encoding: str = "utf-8-sig"
    names: list[str] = []
    decimal: Literal[".", ","] = "."

    @model_validator(mode="after")
    def _all_or_no_splits(self) -> Self:
        given = {f.split for f in self.files}
        if None in given and len(given) > 1:
            raise ValueError("some files have a split and some have none; give one to every file, or to none")
        if not given & {None, "train"}:
            raise ValueError(f"no file is for training (splits: {sorted(given)}); without splits they are drawn")
        return self


class Hub(Section):
    """A data set of the Hugging Face hub; `splits` maps ours to its own, `local` says how to read copies."""

    kind: Literal["hub"]
    path: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    config: str = ""
    revision: str = ""
    splits: dict[SplitName, str] = Field(min_length=1)
    local: Files | None = None


class Prepare(Section):
    """A function in a Python file beside the card: from the data folder (a Path) to a DataFrame."""

    kind: Literal["prepare"] = "prepare"
    prepare: str = Field(pattern=r"^[\w./-]+\.py:\w+$")


def _with_kind(load: Any) -> Any:
    return load | {"kind": "prepare"} if isinstance(load, dict) and "prepare" in load else load


class Gold(Section):
    """A column of answers, and what each of its values means."""

    column: str
    map: dict[str, str] = {}

    def check(self, where: str, known: Sequence[str]) -> None:
        """Refuse a map to what is not ``known``; where nothing is, any answer will do."""
        if wrong := [answer for answer in self.map.values() if known and answer not in known]:
            raise ValueError(f"columns.{where}.map: '{wrong[0]}' is none of {known}{nearest(wrong[0], known)}")


class FeatureColumn(Gold):
    """A value written into the text as ``<wording>: <value> <unit>``; an empty ``missing`` leaves the line out."""

    wording: str = ""
    unit: str = ""
    decimals: int | None = Field(None, ge=0)
    missing: str = "not recorded"

    @property
    def is_number(self) -> bool:
        """Declared as a number, by unit or decimals; with a map it is a code, else shown as it is."""
        return bool(self.unit) or self.decimals is not None


class Columns(Section):
    """How a row becomes a case; without ``group_id`` a group is the cases of one text."""

    text: str = "{fields}"
    fields: list[FeatureColumn] = []
    gold: dict[str, Gold]
    rejected: dict[str, Gold] = {}
    demonstration: dict[str, Gold] = {}
    split: Gold | None = None
    case_id: str = ""
    group_id: str = ""
    details: dict[str, str] = {}
    exclude: list[str] = []
    missing: dict[str, list[str]] = {}
    repeats: Literal["keep", "drop"] = "keep"

    @property
    def placeholders(self) -> list[str]:
        """Columns named in the text, in order."""
        return [name for name in re.findall(r"\{([^{}]+)\}", self.text) if name != "fields"]

    @property
    def shown(self) -> list[str]:
        """Columns that reach the model, or a task that may show them."""
        return [*self.placeholders, *(f.column for f in self.fields), *self.details.values()]

    @property
    def answers(self) -> list[str]:
        """Columns that hold an answer."""
        return [spec.column for kind in (self.gold, self.rejected, self.demonstration) for spec in kind.values()]

    @property
    def read(self) -> list[str]:
        """Columns that every file must have: what a case is made of, and what has values for missing."""
        others = [self.split.column if self.split else "", self.case_id, self.group_id, *self.missing]
        return [name for name in dict.fromkeys([*self.shown, *self.answers, *others]) if name not in ("", "*")]

    def no_value(self, column: str) -> list[str]:
        """What means no value in a column."""
        return [*self.missing.get(column, ()), *self.missing.get("*", ())]

    @model_validator(mode="after")
    def _text_and_no_leak(self) -> Self:
        if ("{fields}" in self.text) != bool(self.fields):
            raise ValueError("fields go where text says {fields}: give both, or a text with {Column} placeholders")
        if not self.shown:
            raise ValueError(f"text {self.text!r} names no {{Column}}: every case would read the same")
        if named := {self.group_id, self.case_id}.intersection(self.shown) - {""}:
            raise ValueError(f"column '{min(named)}' names a patient or case (group_id, case_id): not for the text")
        leaks = {*self.exclude, *self.answers}.intersection(self.shown)
        if leaks:
            told = f"column '{min(leaks)}' gives the answer away (gold or exclude) but is in text or details"
            raise ValueError(f"{told}: take it out of columns.text, columns.fields and columns.details")
        return self


class DataCard(Section):
    """A data source for one task, private unless it says otherwise; ``load`` is not needed where a table is given."""

    name: str = Field(pattern=r"^[\w-]+$")
    title: str
    task: TaskName
    description: str = ""
    licence: str = ""
    citation: str = ""
    shareable: bool = False
    synthetic: bool = False
    question: Text
    labels: dict[str, list[str]] = {}
    positive: str | None = None
    show_options: bool = True
    load: Annotated[Files | Hub | Prepare | None, Field(discriminator="kind"), BeforeValidator(_with_kind)] = None
    columns: Columns
    _folder: Path = PrivateAttr(default=CARDS)

    @property
    def folder(self) -> Path:
        """Where the card lies; its files are looked for beside it, too."""
        return self._folder

    @property
    def local(self) -> Files | Prepare | None:
        """How the source is read without network."""
        return self.load.local if isinstance(self.load, Hub) else self.load

    @property
    def open_outcomes(self) -> frozenset[str]:
        """Outcomes answered in free words; the others choose from `labels`."""
        return frozenset(self.columns.gold) - frozenset(self.labels)

    @model_validator(mode="after")
    def _fits_task(self) -> Self:
        if self.task not in TASK_TYPES:
            raise ValueError(f"task {self.task} has a notebook and no class: name it in medstudy/tasks/__init__.py")
        task = TASK_TYPES[self.task]
        outcomes = task.outcomes or tuple(self.labels)[:1]  # a task without its own has the one that the labels name
        closed = [name for name in outcomes if name not in task.open_outcomes]
        if self.labels.keys() != set(closed) or not outcomes:
            wanted = closed if task.outcomes else "one outcome"
            raise ValueError(f"labels must be for {wanted} in the task {self.task}, not {list(self.labels)}")
        for outcome, names in self.labels.items():
            if len(names) < 2:
                raise ValueError(f"labels.{outcome} needs two labels or more: {names}")
            for name in names:
                if (read := labels_in(name, names)) != [name]:
                    told = f"an answer '{name}' would be read as {' and '.join(read) or 'no label'}"
                    raise ValueError(f"labels.{outcome}: {told}; give labels in words, such as positive and negative")
        only = next(iter(self.labels.values())) if len(self.labels) == 1 else []
        if self.positive is not None and self.positive not in only:
            raise ValueError(f"positive '{self.positive}' is not one of the outcome's labels {only}")
        self._check_columns(outcomes)
        return self

    def _check_columns(self, outcomes: Sequence[str]) -> None:
        columns = self.columns
        if set(columns.gold) != set(outcomes):
            raise ValueError(f"columns.gold must be for {list(outcomes)}, not {list(columns.gold)}")
        for kind in ("gold", "rejected", "demonstration"):
            for outcome, spec in getattr(columns, kind).items():
                if outcome not in outcomes:
                    raise ValueError(f"columns.{kind}.{outcome}: no outcome of {self.task} ({', '.join(outcomes)})")
                spec.check(f"{kind}.{outcome}", self.labels.get(outcome, ()))
        if columns.split:
            columns.split.check("split", SPLITS)
            if isinstance(self.load, Hub) or isinstance(self.load, Files) and self.load.files[0].split:
                raise ValueError("columns.split and splits of the source: keep one of the two")
        bare = [f.column for f in columns.fields if not (f.map or f.is_number)]
        if self.task == "numeric_classification" and (bare or not columns.fields and "features" not in columns.details):
            raise ValueError(f"numeric_classification needs fields with unit, decimals or map; without: {bare}")


def load_card(name_or_path: str | Path) -> DataCard:
    """Read a card, by a name in ``params/data`` or a path; a DataError lists all its faults, one a line."""
    named = Path(name_or_path).suffix not in (".yaml", ".yml")
    path = CARDS / f"{name_or_path}.yaml" if named else from_root(name_or_path)
    if not path.is_file():
        known = sorted(p.stem for p in CARDS.glob("*.yaml"))
        own = "one of your own by its path, such as params/<study>/card.yaml"
        raise DataError(f"no data card {path}{nearest(path.stem, known)} (cards that ship: {', '.join(known)}; {own})")
    try:
        card = DataCard.model_validate(yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:  # what it quotes may be a patient's
            told = re.sub(r" '[\w!-]{2,}'", "", f"{error.problem} (line {error.problem_mark.line + 1})")
        raise DataError(f"{path} is not valid YAML: {told}") from None
    except ValidationError as error:
        raise DataError("\n".join(explained(error, {"": str(path)}))) from None
    card._folder = path.resolve().parent
    return card


class _TextLoader(yaml.BaseLoader):
    """YAML with every scalar kept as text, and a key given twice refused instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for n, (key, _) in enumerate(node.value) if key.value in keys[:n]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=twice.start_mark)
        return super().construct_mapping(node, deep)
