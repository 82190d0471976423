"""One small notebook a model family: it passes its gates, or is refused in one sentence with the remedy.

Slow: `MEDSTUDY_MODELS=folder pytest -m slow tests/training/test_families.py` runs every model folder in it, of real
or made-up weights, and writes its line of the table of docs/models.md from what it saw.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from medstudy.batch.run_notebook import NotebookError, execute
from medstudy.params import resolve
from medstudy.training.chat import load_chat
from medstudy.training.checkpoint import ModelError

FOLDER = Path(os.environ.get("MEDSTUDY_MODELS", "nowhere")).resolve()
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
SMALL = {"task": "numeric_classification", "data": "breast_cancer", "study": "families"}
SMALL |= {"n_train": 40, "n_prefer": 40, "n_valid": 10, "n_test": 20, "sft_epochs": 1, "samples_per_case": 4}


def write_line(name: str, cells: list[str]) -> None:
    """Put a line into the first table of the page, in the place of the family's old one."""
    page = PAGE.read_text(encoding="utf-8")
    head, *old = re.search(r"(?:^\|.*\n)+", page, re.MULTILINE)[0].splitlines(keepends=True)
    plain = [re.sub(r"\s+", " ", cell).replace("|", "&#124;") for cell in [name, *cells]]
    lines = [line for line in old[1:] if not line.startswith(f"| {name} |")] + [f"| {' | '.join(plain)} |\n"]
    new = "".join([head, old[0], *sorted(lines, key=str.casefold)])
    PAGE.write_text(page.replace("".join([head, *old]), new), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="MEDSTUDY_MODELS names no folder with models")
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*") if path.is_dir()))
def test_a_family_passes_its_gates_or_is_refused(name: str, tmp_path: Path) -> None:
    given = SMALL | {"model": str(FOLDER / name), "results": str(tmp_path)}
    prompt = end = ""
    try:
        chat = load_chat(resolve(given))
        prompt, end = (
            f"`{repr(chat.added)[1:-1]}`" if chat.added else "as it is",
            f"`{chat.tokenizer.decode(chat.end)}`",
        )
    except ModelError:
        pass  # the notebook says the same
    outcome = "passes"
    del given["task"]
    try:
        execute(ROOT / "notebooks" / f"{SMALL['task']}.ipynb", tmp_path / "executed.ipynb", given, 1, 0, None)
    except NotebookError as error:
        reason = re.search(r"ModelError: (.*)", str(error), re.DOTALL)
        assert reason, str(error)
        outcome = f"refused: {reason[1].replace(f'{FOLDER}/', '')}"
    gates = [gate for file in tmp_path.rglob("gates.json") for gate in json.loads(file.read_text(encoding="utf-8"))]
    failed = [f"{gate['gate']}: {gate['value']} {gate['reason']}" for gate in gates if not gate["passed"]]
    assert not failed and (gates or outcome != "passes"), failed
    config = FOLDER / name / "config.json"
    known = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    write_line(name, [(known or [""])[0], prompt, end, outcome])
