"""Takes out of an executed notebook what may not be seen: outputs that the package did not make, cells of one's own."""

import builtins
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from medstudy.arms import ARMS
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
PARAMETERS = {"parameters", "injected-parameters"}
#: Lines that the package itself words, with nothing but numbers in them.
_LINES = re.compile(
    rf"(?:{'|'.join(ARMS)}): step \d+ of \d+, loss [\d.naif]+|(?:{'|'.join(TASK_TYPES)}), seed \d+: ok"
    rf"|{re.escape(TOO_FEW).replace(re.escape('{}'), chr(92) + 'd+')}|(?:{re.escape(NOT_SHOWN)}\s*)*"
)
#: SHA-256 of every cell of the notebooks (`list_shipped`).
SHIPPED = Path(__file__).with_name("shipped_cells.txt")


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
            tags = [tag for tag in cell.metadata.get("tags", []) if tag in PARAMETERS | {RELEASE}]
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
            if tags & PARAMETERS:
                shown = without_paths(parameters_in(cell.source))
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


def parameters_in(source: str) -> dict[str, Any]:
    """The parameters that a cell sets; other names in it may hold anything."""
    known = (*RunParams.model_fields, "margin")
    return {name: value for name, value in assigned(source, mixed=True).items() if name in known and value is not ...}


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
