"""One small notebook a model family: it passes its gates, or is refused in one sentence with the remedy.

Slow: `MEDSTUDY_MODELS=folder pytest -m slow tests/training/test_families.py` runs every model folder in it, of real
or made-up weights, and writes the table of docs/models.md from what it saw.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from medstudy.params import resolve
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import ModelError

FOLDER = Path(os.environ.get("MEDSTUDY_MODELS", "nowhere"))
FAMILIES = sorted(path.name for path in FOLDER.glob("*") if path.is_dir())
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "numeric_classification.ipynb"
SMALL = {
    "n_train": 40,
    "n_prefer": 40,
    "n_valid": 10,
    "n_test": 20,
    "sft_epochs": 1,
    "samples_per_case": 4,
    "lora_rank": 4,
    "study": "families",
}
PAGE = ROOT / "docs" / "models.md"
HEAD = "| model | architecture | prompt | answers end with | outcome |\n|---|---|---|---|---|\n"


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, str]]:
    """Line by family: the first table of the page, in which those that were not run now stay as they are."""
    page = PAGE.read_text(encoding="utf-8")
    old = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert old, f"{PAGE} has no table"
    rows = old[0].splitlines()[2:]
    lines = {row.split(" | ")[0][2:]: row for row in rows}
    yield lines
    new = HEAD + "".join(f"{lines[name]}\n" for name in sorted(lines, key=str.casefold))
    PAGE.write_text(page[: old.start()] + new + page[old.end() :], encoding="utf-8")


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """One for all: what takes longest is to import the libraries."""
    client = NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4), kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    with client.setup_kernel():
        yield client


def run_all(client: NotebookClient, given: dict[str, object]) -> None:
    """Every code cell in its order; the parameters cell with ``given`` behind it."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    for cell in [cell for cell in cells if cell.cell_type == "code"]:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in given.items())
        client.nb.cells = [cell]
        client.execute_cell(cell, 0)


@pytest.mark.slow
@pytest.mark.skipif(not FAMILIES, reason="MEDSTUDY_MODELS names no folder with models")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_passes_its_gates_or_is_refused(
    name: str, table: dict[str, str], kernel: NotebookClient, tmp_path: Path
) -> None:
    folder = FOLDER.resolve() / name
    params = resolve({"task": "numeric_classification", "data": "breast_cancer", "model": str(folder)})
    prompt = end = refused = ""
    try:
        chat = load_chat(params)
        prompt = f"`{repr(chat.added)[1:-1]}`" if chat.added else "as it is"
        end = chat.tokenizer.decode([chat.end])
    except ModelError:
        pass  # the notebook says the same
    try:
        run_all(
            kernel,
            SMALL | {"study": "families", "model": str(folder), "data": "breast_cancer", "results": str(tmp_path)},
        )
    except CellExecutionError as error:
        assert error.ename == "ModelError", f"{error.ename}: {error.evalue}"
        refused = error.evalue.replace(f"{FOLDER.resolve()}/", "")
    gates = [gate for file in tmp_path.rglob("gates.json") for gate in json.loads(file.read_text(encoding="utf-8"))]
    failed = [f"{gate['gate']}: {gate['value']} {gate['reason']}" for gate in gates if not gate["passed"]]
    assert refused or (gates and not failed), failed
    config = folder / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    cells = [name, (known or [""])[0], prompt, f"`{end}`" if end else ""]
    outcome = f"refused: {refused}" if refused else "passes"
    plain = [re.sub(r"\s+", " ", cell).replace("|", "&#124;") for cell in [*cells, outcome]]
    table[name] = f"| {' | '.join(plain)} |"
