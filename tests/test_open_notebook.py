"""A notebook in an open kernel, as in JupyterLab: cells are edited and run again in any order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


class Opened:
    """A notebook with its kernel."""

    def __init__(self, client: NotebookClient, small: str) -> None:
        self.client, self.small = client, small
        self.cells = [cell.source for cell in client.nb.cells if cell.cell_type == "code"]
        self.cells[1] += f"\n{small}"
        self.prose = "\n".join(cell.source for cell in client.nb.cells if cell.cell_type == "markdown")

    def run(self, source: str) -> str:
        """Execute one cell; what it printed."""
        cell = nbformat.v4.new_code_cell(source)
        self.client.nb.cells = [cell]
        self.client.execute_cell(cell, 0)
        return "".join(output.get("text", "") for output in cell.outputs)

    def run_all(self, start: int = 1, **edits: str) -> str:
        """Execute the cells from one on; ``edits``: text in them -> other text."""
        said = ""
        for source in self.cells[start:]:
            for old, new in edits.items():
                source = re.sub(rf"\b{old}\b(?! import)", new, source)
            said = self.run(source)
        return said

    def at(self, text: str) -> int:
        """Number of the cell that holds ``text``."""
        return next(i for i, source in enumerate(self.cells) if text in source)


@pytest.fixture(scope="module")
def opened(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    results = tmp_path_factory.mktemp("results")
    small = f'model = "{tiny_model}"\nresults = "{results}"\nn_train = 8\nn_prefer = 8\nn_valid = 4\nn_test = 8\n'
    small += "lora_rank = 2\nsamples_per_case = 2\nsft_epochs = 1\nmax_new_tokens = 4\nbatch_size = 4"
    notebook = nbformat.read(ROOT / "notebooks" / "text_classification.ipynb", as_version=4)
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    with client.setup_kernel():
        yield Opened(client, small)


def test_cells_are_edited_and_run_in_any_order(opened: Opened) -> None:
    """One kernel, as a user has it: what run.json says is what was done, or there is none."""
    assert "ok" in opened.run_all(0)
    folder = Path(opened.run("print(run.folder)").strip())
    trained = lambda arm: len(list((folder / "private" / "stages" / arm).glob("*/stage.json")))  # noqa: E731
    record = lambda: json.loads((folder / "run.json").read_text())  # noqa: E731
    assert record()["stages"]["dpo"]["arguments"]["beta"] == "0.1"

    # a misspelt name, though the kernel holds all names of an earlier run
    collect, finish = opened.at("from_notebook"), opened.at("run.finish")
    opened.run(f"{opened.cells[1]}\ndpo_bata = 0.5")
    with pytest.raises(CellExecutionError, match="unknown parameter 'dpo_bata'; did you mean 'dpo_beta'"):
        opened.run(opened.cells[collect])

    # another beta, and only the last cells run again
    opened.cells[1] += "\ndpo_beta = 0.5"
    opened.run(opened.cells[1])
    with pytest.raises(CellExecutionError, match="a parameters cell says dpo_beta = 0.5, but this run has 0.1"):
        opened.run(opened.cells[finish])
    opened.run(opened.cells[collect])
    with pytest.raises(CellExecutionError, match="the splits are of an earlier start"):
        opened.run(opened.cells[finish])
    for number in (opened.at("split_cases("), opened.at("pairs_of(")):
        opened.run(opened.cells[number])
    opened.run(opened.cells[opened.at("evaluate(scored,")])
    opened.run(opened.cells[opened.at("check_gates(")])
    assert not all(gate["passed"] for gate in json.loads((folder / "gates.json").read_text()))
    with pytest.raises(CellExecutionError, match="the answers of base are of an earlier start"):
        opened.run(opened.cells[finish])
    assert not (folder / "run.json").exists()

    # the whole again: SFT is found, DPO trained; and back again: both are found
    assert "ok" in opened.run_all()
    assert record()["parameters"]["dpo_beta"] == 0.5 and record()["stages"]["dpo"]["arguments"]["beta"] == "0.5"
    assert (trained("sft"), trained("dpo")) == (1, 2)
    opened.cells[1] += "\ndpo_beta = 0.1"
    assert "ok" in opened.run_all()
    assert (trained("sft"), trained("dpo")) == (1, 2)

    # a text of one's own leaves the answers to the test cases alone
    before = record()["stages"]["answers_dpo"]
    opened.run('generation.answer_cases(run, "dpo", task, splits.test[:1], dpo)')
    assert "ok" in opened.run(opened.cells[finish])
    assert record()["stages"]["answers_dpo"] == before

    # a trainer of one's own, edited once more, found again where its code is the same
    train = opened.at("DPOTrainer, dpo_args")
    own = "class Own(DPOTrainer):\n    def compute_loss(self, *a, **k):\n"
    own += "        return {} * super().compute_loss(*a, **k)"
    for factor, number in (("2", 3), ("3", 4), ("2", 4)):
        opened.run(own.format(factor))
        assert "ok" in opened.run_all(train, **{"DPOTrainer, dpo_args": "Own, dpo_args"})
        assert trained("dpo") == number
    assert record()["stages"]["dpo"]["trainer"] == "__main__.Own"

    # arguments edited against the parameters are named
    edited = opened.cells[train].replace("dpo_config(tried, run)", "dpo_config(tried, run)\n    dpo_args.beta = 0.7")
    opened.run(edited)
    with pytest.raises(CellExecutionError, match="dpo was trained with dpo_beta = 0.7, but the parameters say 0.1"):
        opened.run_all(train + 1)


def test_what_the_prose_says_can_be_done_works(opened: Opened) -> None:
    """The block of code in the markdown: a task of one's own."""
    [task] = re.findall(r"```python\n(.*?)```", opened.prose, re.DOTALL)
    opened.run_all(0)
    folder = Path(opened.run("print(run.folder)").strip())
    base = len(list((folder / "private" / "stages" / "answers_base").iterdir()))
    opened.run(task)
    assert "Urinary tract infection: yes or no?" in opened.run(opened.cells[opened.at("task.parse(")])
    assert "ok" in opened.run_all(opened.at("task.parse("))
    assert len(list((folder / "private" / "stages" / "answers_base").iterdir())) == base + 1
