"""Stages are redone exactly when what they depend on has changed; files are whole or not there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from peft import LoraConfig

from medstudy.params import RunParams
from medstudy.runs import Run, fingerprint, from_root, project_root, run_folder, slug, write_json


def test_a_path_is_looked_for_here_and_then_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("notebooks", "params/mine", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    card = tmp_path / "params" / "mine" / "card.yaml"
    card.write_text("name: x")
    monkeypatch.chdir(tmp_path / "notebooks")  # where JupyterLab runs a notebook
    assert from_root("params/mine/card.yaml") == card
    assert from_root("../elsewhere").samefile(tmp_path / "elsewhere")
    assert from_root(card) == card
    (tmp_path / "notebooks" / "params" / "mine").mkdir(parents=True)
    (tmp_path / "notebooks" / "params" / "mine" / "card.yaml").write_text("name: y")
    assert from_root("params/mine/card.yaml").read_text() == "name: y"


def test_a_finished_stage_is_reused_and_a_changed_input_redoes_it(params: RunParams) -> None:
    stage = Run(params).stage("sft", ("training",), rows=[1, 2])
    assert not stage.done
    (stage.folder / "adapter").write_text("weights")
    stage.finish(steps=3)
    again = Run(params).stage("sft", ("training",), rows=[1, 2])
    assert again.done
    assert again.facts["steps"] == 3
    assert (again.folder / "adapter").read_text() == "weights"
    changed = Run(params).stage("sft", ("training",), rows=[1, 3])
    assert not changed.done
    assert not (changed.folder / "adapter").exists()


def test_an_unfinished_stage_starts_empty(params: RunParams) -> None:
    stage = Run(params).stage("sft", ("training",), rows=[1])
    (stage.folder / "half").write_text("half")
    (stage.folder / "checkpoints").mkdir()
    again = Run(params).stage("sft", ("training",), rows=[1])
    assert sorted(path.name for path in again.folder.iterdir()) == ["begun.txt", "checkpoints"]
    other = Run(params).stage("sft", ("training",), rows=[2])
    assert [path.name for path in other.folder.iterdir()] == ["begun.txt"]


def test_other_code_is_another_key(params: RunParams) -> None:
    run = Run(params)
    assert run.stage("a", ("training",), x=1).key != run.stage("b", ("generation",), x=1).key


def test_fingerprint_sees_content_not_order_and_not_where_it_is_written() -> None:
    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": [2.0], "a": 1})
    assert fingerprint({"output_dir": "x"}) != fingerprint({"output_dir": "y"})  # only cosmetic in trainer arguments
    one, two = (LoraConfig(r=rank, target_modules="all-linear") for rank in (2, 4))
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(one) == fingerprint(LoraConfig(r=2, target_modules="all-linear"))


def test_trainer_arguments_are_compared_without_their_folders(tmp_path: Path) -> None:
    from trl import SFTConfig

    def made(folder: str, rate: float) -> SFTConfig:
        return SFTConfig(
            output_dir=str(tmp_path / folder), learning_rate=rate, use_cpu=True, bf16=False, report_to="none"
        )

    assert fingerprint(made("a", 1e-3)) == fingerprint(made("b", 1e-3))
    assert fingerprint(made("a", 1e-3)) != fingerprint(made("a", 2e-3))


def test_private_is_closed_to_others(params: RunParams) -> None:
    run = Run(params)
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    assert run_folder(params) == run.folder


def test_an_old_end_marker_does_not_vouch_for_a_new_start(params: RunParams) -> None:
    run = Run(params)
    record = run.finish(pairs=5)
    assert record["status"] == "ok"
    assert json.loads((run.folder / "run.json").read_text())["pairs"] == 5
    Run(params)
    assert not (run.folder / "run.json").exists()


def test_a_file_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_names_and_places() -> None:
    assert slug("builtin/llama") == "builtin-llama"
    assert slug("meta-llama/Meta-Llama-3-8B-Instruct") == "meta-llama-Meta-Llama-3-8B-Instruct"
    root = Path(__file__).resolve().parents[1]
    assert project_root(root / "notebooks") == root
